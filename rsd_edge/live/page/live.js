"use strict";

const element = (id) => document.getElementById(id);
const stage = element("stage");
const divider = element("divider");
const decoder = new TextDecoder();
let share = 0.5;
let paused = false;
let socket = null;
let retry = 500;
let drawing = false;

// For tests: what has been shown so far.
window.shown = { frames: 0, index: -1 };

function place(x) {
  share = Math.min(1, Math.max(0, x));
  divider.style.left = `${100 * share}%`;
  divider.setAttribute("aria-valuenow", Math.round(100 * share));
  element("before").style.clipPath = `inset(0 ${100 * (1 - share)}% 0 0)`;
}

function fit() {
  const canvas = element("after");
  const room = stage.parentElement.getBoundingClientRect();
  const scale = Math.min((room.width - 36) / canvas.width, (room.height - 36) / canvas.height);
  stage.style.width = `${Math.max(1, Math.floor(canvas.width * scale))}px`;
  stage.style.height = `${Math.max(1, Math.floor(canvas.height * scale))}px`;
}

function drag(event) {
  const box = stage.getBoundingClientRect();
  place((event.clientX - box.left) / box.width);
}

stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  drag(event);
});
stage.addEventListener("pointermove", (event) => {
  if (stage.hasPointerCapture(event.pointerId)) drag(event);
});
divider.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
  if (step !== undefined) {
    place(share + step);
    event.preventDefault();
  }
});

function draw(id, bitmap, width, height) {
  const canvas = element(id);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    fit();
  }
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
}

function tell(statistics) {
  const live = statistics.signal === "live";
  element("state").className = `state ${live ? "live" : "lost"}`;
  element("state-text").textContent = paused ? "paused" : statistics.signal;
  element("veil").classList.toggle("shown", !live && !paused);
  if (statistics.source && statistics.result) {
    element("sizes").textContent = `${statistics.source.join("×")} → ${statistics.result.join("×")}`;
  }
  element("capture-fps").textContent = statistics.capture_fps.toFixed(1);
  element("sr-fps").textContent = statistics.sr_fps.toFixed(1);
  element("dropped").textContent = statistics.dropped;
  element("reused").textContent = `${Math.round(100 * statistics.tiles_reused)} %`;
  if (statistics.latency_ms) {
    element("latency").textContent = statistics.latency_ms.p50.toFixed(0);
    element("latency-p99").textContent = statistics.latency_ms.p99.toFixed(0);
  }
}

async function show(buffer) {
  if (drawing || paused) return; // a slow browser shows the next one
  drawing = true;
  try {
    const length = new DataView(buffer).getUint32(0);
    const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
    const start = 4 + length;
    const jpeg = (from, size) => createImageBitmap(new Blob([new Uint8Array(buffer, from, size)], { type: "image/jpeg" }));
    const [before, after] = await Promise.all([jpeg(start, header.before), jpeg(start + header.before, header.after)]);
    const { width, height } = after;
    draw("after", after, width, height);
    draw("before", before, width, height);
    tell(header.statistics);
    window.shown = { frames: window.shown.frames + 1, index: header.index };
  } finally {
    drawing = false;
  }
}

function connect() {
  const address = new URL("ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.search = location.search;
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    retry = 500;
    if (paused) socket.send("pause");
  };
  socket.onmessage = (event) => show(event.data);
  socket.onclose = () => {
    element("state").className = "state lost";
    element("state-text").textContent = "disconnected";
    setTimeout(connect, retry);
    retry = Math.min(2 * retry, 8000);
  };
}

// Frames bring their numbers along; without frames, they are asked for.
async function ask() {
  const before = window.shown.frames;
  await new Promise((done) => setTimeout(done, 1500));
  if (window.shown.frames === before && socket && socket.readyState === WebSocket.OPEN) {
    const answer = await fetch(`stats.json${location.search}`).catch(() => null);
    if (answer && answer.ok) tell(await answer.json());
  }
  ask();
}

element("pause").addEventListener("click", () => {
  paused = !paused;
  element("pause").textContent = paused ? "Go on" : "Pause";
  element("pause").setAttribute("aria-pressed", paused);
  element("state-text").textContent = paused ? "paused" : "live";
  if (socket.readyState === WebSocket.OPEN) socket.send(paused ? "pause" : "go on");
});
element("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen();
});
element("snapshot").href = `snapshot.png${location.search}`;
window.addEventListener("resize", fit);

place(0.5);
fit();
connect();
ask();
