// Files: chosen, and sent with a bar that shows how much is there and a button that cancels.

import { hint, note, say } from "./hint.js";
import { UNANSWERED, copyOf, facts } from "./server.js";

let sending = null;
let chooser = null; // kept while its dialog is open

class Cancelled extends Error {}

export function failed(error) {
  if (!(error instanceof Cancelled)) say(error);
  else if (!hint.querySelector(".rm-sending")) note(error.message); // else another one took its place
}

// asks for files; no input lies in the page
export function choose({ accept, multiple = false }, call) {
  chooser = Object.assign(document.createElement("input"), { type: "file", accept, multiple });
  chooser.onchange = () => chooser.files.length && call([...chooser.files]);
  chooser.click();
}

export function checkTotal(files) {
  const total = files.reduce((sum, each) => sum + each.size, 0);
  if (total <= facts.upload) return;
  const size = (total / 2 ** 20).toFixed(0);
  throw new Error(`${files.map((each) => each.name).join(", ")}: ${size} MB, expected at most ${facts.upload / 2 ** 20} MB`);
}

// the JSON that comes back; the next upload takes the place of one that is under way
export function upload(path, body, name) {
  sending?.abort();
  const request = (sending = new XMLHttpRequest());
  const row = copyOf("#rm-sending");
  const [text, bar, cancel] = row.children;
  text.textContent = `Sending ${name}…`;
  bar.value = 0;
  cancel.onclick = () => request.abort();
  hint.classList.remove("rm-error");
  hint.replaceChildren(row);
  return new Promise((resolve, reject) => {
    request.upload.onprogress = ({ loaded, total }) => (bar.value = total ? loaded / total : 0);
    request.upload.onload = () => {
      text.textContent = `Reading ${name}…`;
      bar.removeAttribute("value");
    };
    request.onload = () => {
      const found = request.response;
      if (request.status === 200) resolve(found);
      else reject(new Error(found?.error || `the server answers ${request.status}`));
    };
    request.onerror = () => reject(new Error(UNANSWERED));
    request.onabort = () => reject(new Cancelled("cancelled; nothing has changed"));
    request.onloadend = () => row.remove();
    request.responseType = "json";
    request.open("POST", `page/${path}`);
    request.setRequestHeader("Content-Type", "application/json");
    request.send(JSON.stringify(body));
  });
}
