// Progress and the videos of a generation, from what the server yields; see jobs.py.

const $ = (selector) => element.querySelector(selector);
let urls = [];

function show(found) {
  const root = element.firstElementChild;
  root.dataset.state = found.state;
  const part = found.state === "done" ? 1 : (found.step || 0) / (found.steps || 1);
  $(".rm-bar > div").style.width = `${100 * part}%`;
  $(".rm-said").textContent = found.message || "";
  if (found.state !== "done") return;
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = [found.clip, found.strip].map((data) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  });
  [".rm-clip", ".rm-strip"].forEach((name, i) => {
    $(name).src = urls[i];
    $(name).closest("figure").querySelector("a").href = urls[i];
  });
  root.style.setProperty("--rm-aspect", found.width / found.height);
  $(".rm-about").textContent = found.about;
}

for (const video of element.querySelectorAll("video")) video.onclick = () => (video.paused ? video.play() : video.pause());
watch("value", () => show(props.value || { state: "idle" }));
