"""A tiny Wan, image to video, in the hub's layout, as diffusers writes it; and diffusers' own functions."""

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from tokenizers import Tokenizer, processors
from tokenizers.models import Unigram
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from lightning_modules.bases import RandomWan
from lightning_modules.layers import seeded

SIDE = 28  # of the image encoder's square


def tokenizer() -> PreTrainedTokenizerFast:
    """Of four words; every prompt ends with token 1, as UMT5's."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("red", -1.0), ("dog", -1.0), (" ", -1.0)]
    made = Tokenizer(Unigram(words, unk_id=2))
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def text_encoder(seed: int = 5) -> UMT5EncoderModel:
    with seeded(seed):
        return UMT5EncoderModel(
            UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=1)
        ).eval()


def pipeline(base: RandomWan) -> WanImageToVideoPipeline:
    """diffusers' own, over a base's networks."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    square = {"height": SIDE, "width": SIDE}
    images = {
        "image_processor": CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        "image_encoder": base.image_encoder,
    }
    two = {"transformer_2": base.transformer_2, "boundary_ratio": base.boundary}
    more = {"expand_timesteps": True} if base.first_given else two if base.transformer_2 is not None else images
    pipe = WanImageToVideoPipeline(
        tokenizer(), text_encoder(), base.vae, scheduler, transformer=base.transformer, **more
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(folder: Path, size: str = "tiny_i2v", seed: int = 3) -> Path:
    """Write all components, with random weights."""
    pipeline(RandomWan(size, seed, **({"expert": "high"} if "a14b" in size else {})).build()).save_pretrained(folder)
    return folder


@contextmanager
def lifted():
    """diffusers' blocks compute their norms in float32 also in a float64 network: not here."""
    plain = torch.Tensor.float
    with mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else plain(x)):
        yield


def embeddings(pipe: WanImageToVideoPipeline, *prompts: str) -> torch.Tensor:
    """(B, 512, D) of prompts, by diffusers' pipeline; nothing in them needs the cleaning of text by another library."""
    with mock.patch("diffusers.pipelines.wan.pipeline_wan_i2v.prompt_clean", lambda text: text):
        return pipe.encode_prompt([*prompts], None, False, max_sequence_length=512, device="cpu")[0].detach()
