// Shows what a model finds in a picture, a video or what a camera sees. The server is asked once for everything above a
// low confidence; threshold and classes are a choice among what it answered.

import { drawBoxes } from "./drawing.js";
import { Problem, fetchModels, predict } from "./server.js";

const LOWEST = 0.05;
const MAX_SHOWN = 2048; // pixels of a side of the canvas; phones allow no more than 16 million in all
const MAX_FRAME = 1280; // pixels of a side of a frame that is sent
const SENT_AS_IS = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif"];
const MANY_CLASSES = 12;
const MAX_LISTED = 100;
const ANNOUNCE_MS = 4000;
const RETRIES = 5;

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const context = canvas.getContext("2d");
const video = document.createElement("video");
Object.assign(video, { muted: true, playsInline: true });

let models = []; // what the server has
let limits = {};
let model = null;
let shown = null; // { bitmap, blob, result, isLive, seconds }: what is on the canvas
let hidden = new Set(); // ids of classes that are not wanted
let current = null; // the AbortController of the source that is shown
let lastAnnounced = 0;

// ---- The server ------------------------------------------------------------------------------------------------

function askForToken(wasWrong) {
  $("token-text").textContent = wasWrong
    ? "This is not the token of this server."
    : "This server answers those who know its token.";
  $("token").value = "";
  $("token-dialog").showModal();
  return new Promise((resolve) => {
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      $("token-dialog").close();
      resolve($("token").value.trim());
    };
  });
}
$("token-dialog").addEventListener("cancel", (event) => event.preventDefault()); // nothing works without it

async function start() {
  try {
    ({ models, limits } = await fetchModels(askForToken));
  } catch (error) {
    $("model-line").textContent = "";
    complain(error);
    return;
  }
  $("model").replaceChildren(...models.map(({ name }) => new Option(name)));
  $("model-field").hidden = models.length < 2;
  choose(models[0]);
}

function choose(chosen) {
  model = chosen;
  hidden = new Set();
  if (shown) shown.result = null; // of other classes
  $("model-line").textContent = `${model.name} · ${model.classes.length} class${model.classes.length > 1 ? "es" : ""}`;
  const hasBest = model.classes.some(({ threshold }) => threshold !== null);
  $("best-field").hidden = !hasBest;
  $("best").checked = hasBest;
  showFacts();
  listClasses();
  refresh();
}

function showFacts() {
  const facts = {
    Name: model.name,
    Model: model.architecture,
    "Input, width × height": `${model.width} × ${model.height} (${model.resize})`,
    "Runs in": `${model.runtime}, ${model.precision} weights`,
    Classes: model.classes.length,
    "Images per run": `up to ${model.max_batch}`,
    "Largest image": `${limits.pixels / 1e6} megapixels, ${Math.floor(limits.image_bytes / 2 ** 20)} MiB`,
  };
  $("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [make("dt", name), make("dd", String(value))]),
  );
}

// ---- Sources ---------------------------------------------------------------------------------------------------

/** Ends what is shown, and returns the signal that says when the next source ends in turn. */
function begin() {
  end();
  current = new AbortController();
  complain(null);
  return current.signal;
}

function end() {
  current?.abort();
  current = null;
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.pause();
  video.srcObject = null;
  if (video.src) URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  $("pause").hidden = $("stop").hidden = true;
  $("busy").hidden = true;
}

async function open(file) {
  if (model === null) return;
  if (file.type.startsWith("video/")) await openVideo(file);
  else await openPicture(file);
}

async function openPicture(file) {
  const signal = begin();
  await busily(signal, async () => {
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Problem("This browser cannot show this file; give a JPEG or PNG picture.", "unreadable");
    });
    if (signal.aborted) return;
    show({ bitmap, result: null, isLive: false });
    await look(bitmap, await sendable(file, bitmap), signal, false);
  });
}

/** Asks another model about the picture that is shown. */
async function openAgain({ bitmap, blob }) {
  const signal = begin();
  await busily(signal, () => look(bitmap, blob, signal, false));
}

/** Asks what is in a picture, and shows the answer if it is still wanted. */
async function look(bitmap, blob, signal, isLive) {
  const [asked, begun] = [model, performance.now()];
  const result = await patiently(blob, signal);
  if (asked !== model || signal.aborted) return;
  show({ bitmap, blob, result, isLive, seconds: (performance.now() - begun) / 1000 });
}

async function busily(signal, work) {
  $("busy").hidden = false;
  try {
    await work();
  } catch (error) {
    if (!signal.aborted) complain(error);
  } finally {
    if (!signal.aborted) $("busy").hidden = true;
  }
}

/** The file itself if the server takes it, or else a copy that it does. */
async function sendable(file, bitmap) {
  const isSmall = file.size <= limits.image_bytes && bitmap.width * bitmap.height <= limits.pixels;
  if (isSmall && SENT_AS_IS.includes(file.type)) return file;
  const share = Math.min(1, Math.sqrt(Math.min(limits.pixels, 16e6) / (bitmap.width * bitmap.height)));
  return jpegOf(bitmap, Math.floor(bitmap.width * share), Math.floor(bitmap.height * share));
}

async function openVideo(file) {
  const signal = begin();
  video.src = URL.createObjectURL(file);
  try {
    await video.play();
  } catch {
    if (!signal.aborted) complain(new Problem("This browser cannot play this video; try MP4 or WebM.", "unreadable"));
    return;
  }
  await follow(signal, () => video.ended);
}

async function openCamera() {
  if (model === null) return;
  const signal = begin();
  if (!navigator.mediaDevices?.getUserMedia) {
    complain(new Problem("Browsers allow the camera on https and localhost only.", "no_camera"));
    return;
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1280 } },
      audio: false,
    });
    if (signal.aborted) {
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    const reason = error.name === "NotAllowedError" ? "it is not allowed" : "there is none, or another program has it";
    if (!signal.aborted) complain(new Problem(`The camera cannot be used: ${reason}.`, "no_camera"));
    return;
  }
  await follow(signal, () => !video.srcObject?.active);
}

/** Asks for one frame after the other: the next one is taken when the answer to the last one is there. */
async function follow(signal, isOver) {
  $("stop").hidden = $("pause").hidden = false;
  setPaused(false);
  try {
    while (!signal.aborted && !isOver()) {
      await nextFrame(signal);
      if (signal.aborted || !video.videoWidth) continue;
      const bitmap = await createImageBitmap(video);
      const share = Math.min(1, MAX_FRAME / Math.max(bitmap.width, bitmap.height));
      const blob = await jpegOf(bitmap, Math.round(bitmap.width * share), Math.round(bitmap.height * share));
      await look(bitmap, blob, signal, true);
    }
  } catch (error) {
    if (!signal.aborted) complain(error);
  } finally {
    if (!signal.aborted) {
      end();
      announce(true);
    }
  }
}

/** Waits for a frame that has not been seen; while it is paused there is none. */
async function nextFrame(signal) {
  const listening = new AbortController();
  await new Promise((resolve) => {
    const once = { signal: listening.signal };
    signal.addEventListener("abort", resolve, once);
    for (const name of ["ended", "emptied"]) video.addEventListener(name, resolve, once);
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(resolve);
    else video.addEventListener("timeupdate", resolve, once);
  });
  listening.abort();
}

/** What the server finds, asked again after as long as it says if it is busy. */
async function patiently(blob, signal) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const result = await predict(blob, { model: model.name, conf: LOWEST, signal }, askForToken);
      complain(null);
      return result;
    } catch (error) {
      if (!error.retryAfter || attempt === RETRIES) throw error;
      complain(new Problem(`The server is busy; trying again in ${error.retryAfter} s.`, error.code));
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      signal.throwIfAborted();
    }
  }
}

async function jpegOf(bitmap, width, height) {
  const copy = new OffscreenCanvas(width, height);
  copy.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return copy.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

function setPaused(isPaused) {
  $("pause").setAttribute("aria-pressed", String(isPaused));
  $("pause").textContent = isPaused ? "Go on" : "Pause";
}

// ---- What is shown ---------------------------------------------------------------------------------------------

function show(picture) {
  if (shown && shown.bitmap !== picture.bitmap) shown.bitmap.close();
  shown = picture;
  canvas.style.setProperty("--aspect", picture.bitmap.width / picture.bitmap.height);
  canvas.hidden = false;
  $("empty").hidden = true;
  $("drop").classList.add("filled");
  refresh();
  announce(!picture.isLive);
}

/** Gives the canvas the pixels of the picture, and of the screen if these are more: names are to be sharp. */
function fitCanvas() {
  const { width, height } = shown.bitmap;
  const wanted = Math.max(1, (canvas.clientWidth * devicePixelRatio) / width);
  const share = Math.min(wanted, MAX_SHOWN / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * share));
  canvas.height = Math.max(1, Math.round(height * share));
}

function thresholdOf(classId) {
  const best = $("best").checked ? model.classes[classId].threshold : null;
  return best ?? $("threshold").valueAsNumber;
}

/** The objects that are wanted of those that were found. */
function wanted() {
  return (shown?.result?.detections ?? []).filter(
    ({ class_id, confidence }) => !hidden.has(class_id) && confidence >= thresholdOf(class_id),
  );
}

function refresh() {
  $("threshold-value").textContent = $("best").checked ? "by class" : $("threshold").valueAsNumber.toFixed(2);
  $("save-png").disabled = $("save-json").disabled = !shown?.result;
  if (!shown) return;
  const objects = wanted();
  fitCanvas();
  context.drawImage(shown.bitmap, 0, 0, canvas.width, canvas.height);
  if (shown.result) {
    drawBoxes(context, objects, shown.result, {
      colors: model.classes.map(({ color }) => color),
      pixelsPerCss: canvas.width / (canvas.clientWidth || canvas.width),
      hasLabels: $("labels").checked,
    });
  }
  const text = summaryOf(objects);
  $("summary").textContent = text;
  canvas.setAttribute("aria-label", text);
  showLatency();
  countClasses(objects);
  listObjects(objects);
}

function summaryOf(objects) {
  if (!shown.result) return "Looking…";
  const counts = new Map();
  for (const { name } of objects) counts.set(name, (counts.get(name) ?? 0) + 1);
  const parts = [...counts].sort((one, other) => other[1] - one[1]).map(([name, count]) => `${count} ${name}`);
  if (parts.length > 6) parts.splice(6, Infinity, "…");
  return parts.join(", ") || "Nothing found at this confidence.";
}

function showLatency() {
  const { result, seconds } = shown;
  if (!result) {
    $("latency").textContent = "";
    return;
  }
  const { decode, wait, run } = result.times_ms;
  const steps = `network ${run.toFixed(0)}, queue ${wait.toFixed(0)}, decoding ${decode.toFixed(0)}`;
  const rate = shown.isLive ? ` · ${(1 / seconds).toFixed(1)} frames/s` : "";
  $("latency").textContent = `${(1000 * seconds).toFixed(0)} ms${rate} · ${steps}`;
}

/** Tells those who hear the page what is on it; of a live picture only now and then. */
function announce(isFinal) {
  const now = performance.now();
  if (!shown?.result || (!isFinal && now - lastAnnounced < ANNOUNCE_MS)) return;
  lastAnnounced = now;
  $("announce").textContent = $("summary").textContent;
}

function listClasses() {
  $("search").hidden = model.classes.length <= MANY_CLASSES;
  $("search").value = "";
  $("classes").replaceChildren(
    ...model.classes.map(({ id, name, color }) => {
      const box = make("input");
      Object.assign(box, { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        hidden[box.checked ? "delete" : "add"](id);
        refresh();
      });
      const swatch = make("span");
      swatch.className = "swatch";
      swatch.style.backgroundColor = color;
      const count = make("span", "");
      count.className = "count";
      const label = make("label");
      label.className = "check";
      label.append(box, swatch, make("span", name), count);
      const item = make("li");
      item.append(label);
      return item;
    }),
  );
}

function countClasses(objects) {
  const counts = new Map();
  for (const { class_id } of objects) counts.set(class_id, (counts.get(class_id) ?? 0) + 1);
  for (const [id, item] of [...$("classes").children].entries()) {
    item.querySelector(".count").textContent = counts.get(id) ?? "";
  }
}

function setAll(isWanted) {
  for (const [id, item] of [...$("classes").children].entries()) {
    if (item.hidden) continue; // those that were not searched for
    item.querySelector("input").checked = isWanted;
    hidden[isWanted ? "delete" : "add"](id);
  }
  refresh();
}

function listObjects(objects) {
  if (!$("list-details").open) return;
  $("objects").replaceChildren(
    ...objects.slice(0, MAX_LISTED).map(({ name, confidence, xyxy }) => {
      const row = make("tr");
      const numbers = [confidence.toFixed(2), xyxy.map((value) => value.toFixed(0)).join(", ")];
      row.append(make("td", name), ...numbers.map((text) => Object.assign(make("td", text), { className: "number" })));
      return row;
    }),
  );
}

function complain(error) {
  if (error && !(error instanceof Problem)) console.error(error);
  $("message").textContent = error ? (error instanceof Problem ? error.message : "Something went wrong here.") : "";
}

function make(tag, text) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- Saving ----------------------------------------------------------------------------------------------------

function save(blob, name) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function savePicture() {
  canvas.toBlob((blob) => save(blob, "detections.png"), "image/png");
}

function saveList() {
  const { width, height } = shown.result;
  const content = { model: model.name, width, height, detections: wanted() };
  save(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), "detections.json");
}

// ---- The user --------------------------------------------------------------------------------------------------

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = ""; // so that the same file can be chosen again
  if (file) open(file);
});
$("camera").addEventListener("click", openCamera);
$("stop").addEventListener("click", () => {
  end();
  announce(true);
});
$("pause").addEventListener("click", () => {
  if (video.paused) video.play();
  else video.pause();
  setPaused(video.paused);
});
$("model").addEventListener("change", () => {
  choose(models[$("model").selectedIndex]);
  if (shown?.blob && !shown.isLive) openAgain(shown);
});
$("threshold").addEventListener("input", () => {
  $("best").checked = false;
  refresh();
});
for (const id of ["best", "labels"]) $(id).addEventListener("input", refresh);
$("threshold").addEventListener("change", () => announce(true));
$("all").addEventListener("click", () => setAll(true));
$("none").addEventListener("click", () => setAll(false));
$("search").addEventListener("input", () => {
  const text = $("search").value.toLowerCase();
  for (const [id, item] of [...$("classes").children].entries()) {
    item.hidden = !model.classes[id].name.toLowerCase().includes(text);
  }
});
$("list-details").addEventListener("toggle", refresh);
$("save-png").addEventListener("click", savePicture);
$("save-json").addEventListener("click", saveList);

for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file);
});
addEventListener("resize", refresh);
addEventListener("pagehide", end);

start();
