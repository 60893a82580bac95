// What the server is asked, and what comes of it.

const BASE = "page/";
const $ = (selector) => element.querySelector(selector);

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(BASE + path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Error("the server does not answer; is `remoco page` still running?");
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => null);
  throw new Error(found?.error || `the server answers ${answer.status}`);
}

// at most one call at a time, the last one always made, `pause` ms after what led to it
function sometimes(pause, call) {
  let [timer, running, again] = [null, false, false];
  const start = async () => {
    timer = null;
    running = true;
    await call();
    running = false;
    if (again) soon();
    again = false;
  };
  const soon = () => {
    if (running) again = true;
    else timer ||= setTimeout(start, pause);
  };
  return soon;
}

const dead = () => !element.isConnected;

function loadPicture(url) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("the browser cannot show this picture"));
    picture.src = url;
  });
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${blob.name} cannot be read`));
    reader.readAsDataURL(blob);
  });
}

function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
