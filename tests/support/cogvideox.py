"""A tiny CogVideoX, image to video, in the hub's layout, as diffusers writes it; and diffusers' own functions."""

import io
import shutil
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline
from transformers import T5Config, T5EncoderModel

from lightning_modules.bases import RandomCogVideoX
from lightning_modules.layers import seeded
from tests.support.modules import draw
from tests.support.wan import tokenizer

TOKENS = 12  # of text, padding included


def scheduler() -> CogVideoXDDIMScheduler:
    """With the settings of CogVideoX-5b-I2V's."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing",
        clip_sample=False,
    )  # fmt: skip


def text_encoder(seed: int = 5, vocabulary: int = 32) -> T5EncoderModel:
    with seeded(seed):
        sizes = {"vocab_size": vocabulary, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


def pipeline(base: RandomCogVideoX) -> CogVideoXImageToVideoPipeline:
    """diffusers' own, over a base's networks."""
    pipe = CogVideoXImageToVideoPipeline(tokenizer(), text_encoder(), base.vae, base.transformer, scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(folder: Path, seed: int = 3) -> Path:
    """Write all components, with random weights."""
    pipeline(RandomCogVideoX("tiny_i2v", seed).build()).save_pretrained(folder)
    return folder


def embeddings(pipe: CogVideoXImageToVideoPipeline, *prompts: str) -> torch.Tensor:
    """(B, n, D) of prompts, by diffusers' pipeline."""
    return pipe.encode_prompt([*prompts], None, False, max_sequence_length=TOKENS, device="cpu")[0].detach()


def rotary(pipe: CogVideoXImageToVideoPipeline, height: int, width: int, latents: int) -> tuple[torch.Tensor, ...]:
    return pipe._prepare_rotary_positional_embeddings(height, width, latents, torch.device("cpu"))


FRAMES, SIDE = 9, 64  # the one clip of the tiny base


def first_frame(batch=1, seed=1):
    """(B, 3, H, W) float64 in [-1, 1]."""
    return draw(batch, 3, SIDE, SIDE, seed=seed).tanh()


def conditioned(base, batch=1, **more):
    """A base's conditioning on such frames."""
    known = {"first_frame": first_frame(batch).to(base.arithmetic()), "frames": FRAMES, **more}
    return base.condition(known, {}, None)


def velocity(pipe, x, time, first, text):
    """diffusers' network, as its pipeline calls it; times in float64, or it would take their sines in float32."""
    known = torch.cat([first, first.new_zeros(len(x), x.shape[1] - 1, *first.shape[2:])], 1)
    inputs = torch.cat([x, known], 2)
    table = rotary(pipe, SIDE, SIDE, x.shape[1])
    return pipe.transformer(inputs, text, time, image_rotary_emb=table, return_dict=False)[0]


def write_pieces(folder: Path) -> Path:
    """Give a folder a tokenizer as the hub's has it, `spiece.model` alone, and an encoder that knows its tokens."""
    import sentencepiece

    words, model = ["a red dog runs", "the dog is red", "two dogs, été"] * 50, io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=40, hard_vocab_limit=False, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(model.getvalue())
    text_encoder(vocabulary=200).save_pretrained(folder / "text_encoder")
    return folder
