"use strict";
// The page of `efafnet serve`: a photograph in, joints drawn, two networks side by side. No library, nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const COLOURS = { left: "#ff9f1c", right: "#2ea8ff", middle: "#f0f0f0" };
const REACH = 24; // CSS pixels around a joint in which it is pointed at
const CAMERA_WIDTH = 640;

const state = {
  token: "", models: new Map(), image: null, file: null, boxes: [], answers: [], hovered: null, drag: null, live: false, round: 0,
};

// ---- talking to the server

function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    sessionStorage.setItem("token", found);
    history.replaceState(null, "", location.pathname); // not to be left in the address line
  }
  state.token = found || sessionStorage.getItem("token") || "";
}

async function ask(path, options = {}) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("the server does not answer");
  }
  if (answer.ok) return answer.json();
  if (answer.status === 401) $("token-form").hidden = false;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.error || `the server says ${answer.status}`);
}

function say(text, isProblem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", isProblem);
}

async function loadModels() {
  const found = await ask("v1/models");
  state.models = new Map(found.models.map((model) => [model.name, model]));
  const options = found.models.map(({ name }) => new Option(name, name));
  $("first").replaceChildren(...options);
  $("second").replaceChildren(new Option("none", ""), ...options.map((option) => option.cloneNode(true)));
  if (found.models.length > 1) $("second").value = found.models[1].name;
  $("token-form").hidden = true;
  layOut();
}

const chosen = () => [$("first").value, $("second").value].filter(Boolean);

async function predict(withHeatmaps = true) {
  if (!state.file) return;
  const round = ++state.round;
  const query = new URLSearchParams({ heatmaps: withHeatmaps });
  if (state.boxes.length) query.set("boxes", JSON.stringify(state.boxes.map((box) => box.map((v) => Math.round(v * 10) / 10))));
  const began = performance.now();
  try {
    const asked = chosen().map((model) => ask(`v1/persons?${query}&model=${encodeURIComponent(model)}`, { method: "POST", body: state.file }));
    const answers = await Promise.all(asked);
    if (round !== state.round) return; // another was asked for meanwhile
    await Promise.all(answers.flatMap((answer) => answer.persons.map(readHeatmaps)));
    state.answers = answers;
    const { persons, boxes_from } = answers[0];
    const from = { request: "in your boxes", detector: "found by the detector", whole_image: "taking the whole image as one; drag to box each" }[boxes_from];
    say(`${persons.length} ${persons.length === 1 ? "person" : "persons"}, ${from}; ${Math.round(performance.now() - began)} ms`);
  } catch (error) {
    if (round !== state.round) return;
    state.answers = [];
    say(error.message, true);
  }
  $("download").disabled = !state.answers.length;
  draw();
  fillTable();
}

async function readHeatmaps(person) {
  if (!person.heatmaps) return;
  const bytes = Uint8Array.from(atob(person.heatmaps.png_base64), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const value = pixels.data[i];
    pixels.data.set([255, 60 + value * 0.7, 0, Math.min(215, value * 1.4)], i);
  }
  pen.putImageData(pixels, 0, 0);
  Object.defineProperty(person, "painted", { value: canvas }); // not part of the JSON
}

// ---- where the photograph comes from

async function open(file) {
  if (!file) return;
  stopCamera();
  let image;
  try {
    image = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    say(`${file.name || "this"} is no image that the browser can show`, true);
    return;
  }
  Object.assign(state, { file, image, boxes: [], answers: [], hovered: null });
  layOut();
  say("looking …");
  await predict();
}

async function toggleCamera() {
  if (state.live) { stopCamera(); await predict(); return; }
  if (!navigator.mediaDevices) {
    // Browsers give live pictures to https and to this machine alone; elsewhere the camera takes a photograph.
    $("file").setAttribute("capture", "environment");
    $("file").click();
    return;
  }
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: CAMERA_WIDTH, facingMode: "environment" } });
  } catch (error) {
    say(`no camera: ${error.message}`, true);
    return;
  }
  await $("video").play();
  state.live = true;
  state.boxes = [];
  $("camera").setAttribute("aria-pressed", "true");
  while (state.live) await frame(); // the next when the last is answered: never more than one under way
}

async function frame() {
  const { videoWidth: width, videoHeight: height } = $("video");
  const still = Object.assign(document.createElement("canvas"), { width, height });
  still.getContext("2d").drawImage($("video"), 0, 0);
  const file = await new Promise((done) => still.toBlob(done, "image/jpeg", 0.85));
  const sized = state.image && state.image.width === width && state.image.height === height;
  Object.assign(state, { image: still, file, hovered: null });
  if (!sized) { state.answers = []; layOut(); }
  await predict(false);
  if (!state.answers.length) stopCamera();
}

function stopCamera() {
  state.live = false;
  $("camera").setAttribute("aria-pressed", "false");
  for (const track of $("video").srcObject?.getTracks() || []) track.stop();
  $("video").srcObject = null;
}

// ---- drawing

function layOut() {
  const names = state.image ? chosen() : [];
  $("views").replaceChildren(...names.map((name, index) => {
    const figure = $("view").content.cloneNode(true);
    const canvas = figure.querySelector("canvas");
    Object.assign(canvas, { width: state.image.width, height: state.image.height });
    canvas.dataset.index = index;
    canvas.addEventListener("pointerdown", press);
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", () => { state.drag = null; draw(); });
    canvas.addEventListener("pointerleave", () => { state.hovered = null; draw(); });
    return figure;
  }));
  draw();
}

function sides(model) {
  const names = model.joints.map((joint) => (/left|^l[_A-Z]/.test(joint) ? "left" : /right|^r[_A-Z]/.test(joint) ? "right" : "middle"));
  for (const [a, b] of model.flip_pairs) if (names[a] === "middle" && names[b] === "middle") { names[a] = "left"; names[b] = "right"; }
  return names;
}

const pixel = (canvas) => canvas.width / (canvas.getBoundingClientRect().width || canvas.width); // image pixels per CSS pixel

function draw() {
  document.querySelectorAll("#views canvas").forEach((canvas, index) => {
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(state.image, 0, 0, canvas.width, canvas.height);
    const answer = state.answers[index], name = chosen()[index];
    const unit = pixel(canvas);
    canvas.nextElementSibling.textContent = name;
    if (answer) drawAnswer(pen, answer, unit, canvas);
    for (const box of state.boxes) outline(pen, box, unit, "#fff");
    if (state.drag?.box) outline(pen, state.drag.box, unit, "#ff0");
  });
}

function drawAnswer(pen, answer, unit, canvas) {
  const model = state.models.get(answer.model), side = sides(model), least = Number($("threshold").value);
  const { person: over, joint } = state.hovered || {};
  if (over !== undefined && answer.persons[over]) drawHeatmap(pen, answer.persons[over], joint);
  const scored = answer.persons.map((person) => person.score.toFixed(2)).join("  ");
  canvas.nextElementSibling.textContent = `${answer.model}: ${model.network} ${model.input}, ${(model.parameters / 1e6).toFixed(1)} M; scores ${scored}`;
  answer.persons.forEach((person, number) => {
    const points = person.keypoints;
    pen.lineWidth = 2.5 * unit;
    for (const [a, b] of model.limbs) {
      if (points[a].score < least || points[b].score < least) continue;
      pen.strokeStyle = COLOURS[side[a] === side[b] ? side[a] : "middle"];
      pen.beginPath();
      pen.moveTo(points[a].x, points[a].y);
      pen.lineTo(points[b].x, points[b].y);
      pen.stroke();
    }
    points.forEach((point, k) => {
      if (point.score <= 0) return;
      const isHovered = over === number && joint === k;
      pen.beginPath();
      pen.arc(point.x, point.y, (isHovered ? 7 : 4) * unit, 0, 2 * Math.PI);
      pen.fillStyle = pen.strokeStyle = COLOURS[side[k]];
      pen.lineWidth = 1.5 * unit;
      if (point.score >= least) { pen.fill(); pen.strokeStyle = "#fff"; pen.lineWidth = unit; }
      pen.stroke();
    });
  });
  if (over !== undefined && answer.persons[over]) label(pen, answer.persons[over].keypoints[joint], unit, canvas);
}

function drawHeatmap(pen, person, joint) {
  if (!person.painted) return;
  const { width, height, to_image: [[a, c, e], [b, d, f]] } = person.heatmaps;
  pen.save();
  // The centre of a pixel is its coordinate; a canvas counts from its corner.
  pen.setTransform(a, b, c, d, e + 0.5, f + 0.5);
  pen.drawImage(person.painted, 0, joint * height, width, height, -0.5, -0.5, width, height);
  pen.restore();
}

function label(pen, point, unit, canvas) {
  const text = `${point.joint} ${point.score.toFixed(2)}`;
  pen.font = `${14 * unit}px system-ui, sans-serif`;
  const width = pen.measureText(text).width + 10 * unit, height = 22 * unit;
  const x = Math.min(Math.max(0, point.x + 10 * unit), canvas.width - width);
  const y = Math.max(0, Math.min(point.y - 30 * unit, canvas.height - height));
  pen.fillStyle = "#000c";
  pen.fillRect(x, y, width, height);
  pen.fillStyle = "#fff";
  pen.fillText(text, x + 5 * unit, y + 16 * unit);
}

function outline(pen, [left, top, width, height], unit, colour) {
  pen.lineWidth = 2 * unit;
  pen.strokeStyle = colour;
  pen.setLineDash([6 * unit, 4 * unit]);
  pen.strokeRect(left, top, width, height);
  pen.setLineDash([]);
}

function fillTable() {
  const head = document.createElement("tr");
  const cell = (row, tag, text) => row.append(Object.assign(document.createElement(tag), { textContent: text }));
  const columns = state.answers.flatMap((answer) => answer.persons.map((person, n) => [`${answer.model} ${n + 1}`, person]));
  cell(head, "th", "joint");
  columns.forEach(([name]) => cell(head, "th", name));
  const joints = [...new Set(columns.flatMap(([, person]) => person.keypoints.map(({ joint }) => joint)))];
  const rows = joints.map((joint) => {
    const row = document.createElement("tr");
    cell(row, "td", joint);
    for (const [, person] of columns) {
      const point = person.keypoints.find((one) => one.joint === joint);
      cell(row, "td", point ? `${point.x.toFixed(0)}, ${point.y.toFixed(0)}  (${point.score.toFixed(2)})` : "");
    }
    return row;
  });
  const table = document.createElement("table");
  table.append(head, ...rows);
  $("table").replaceChildren(table);
}

// ---- pointing: near a joint its heatmap, a drag makes a box

function place(event) {
  const canvas = event.currentTarget, frame = canvas.getBoundingClientRect();
  return [(event.clientX - frame.left) * pixel(canvas) - 0.5, (event.clientY - frame.top) * pixel(canvas) - 0.5];
}

function nearest(event) {
  const [x, y] = place(event), canvas = event.currentTarget;
  let best = null, distance = REACH * pixel(canvas);
  (state.answers[canvas.dataset.index]?.persons || []).forEach((person, number) => person.keypoints.forEach((point, joint) => {
    const away = Math.hypot(point.x - x, point.y - y);
    if (point.score > 0 && away < distance) [best, distance] = [{ person: number, joint }, away];
  }));
  return best;
}

function press(event) {
  if (state.live) return;
  event.currentTarget.setPointerCapture(event.pointerId);
  state.drag = { from: place(event), box: null };
}

function move(event) {
  if (state.drag) {
    const [x, y] = place(event), [left, top] = state.drag.from;
    const box = [Math.min(x, left), Math.min(y, top), Math.abs(x - left), Math.abs(y - top)];
    state.drag.box = Math.min(box[2], box[3]) > 8 * pixel(event.currentTarget) ? box : null;
  } else {
    state.hovered = nearest(event);
  }
  draw();
}

function release(event) {
  const box = state.drag?.box;
  state.drag = null;
  if (box) {
    state.boxes.push(box);
    $("clear").disabled = false;
    predict();
  } else {
    state.hovered = nearest(event); // a tap, where nothing hovers
  }
  draw();
}

// ---- controls

function download() {
  const text = JSON.stringify(state.answers.length === 1 ? state.answers[0] : state.answers, (key, value) => (key === "heatmaps" ? undefined : value), 1);
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "persons.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function begin() {
  takeToken();
  $("file").addEventListener("change", (event) => open(event.target.files[0]));
  $("camera").addEventListener("click", toggleCamera);
  $("download").addEventListener("click", download);
  $("clear").addEventListener("click", () => { state.boxes = []; $("clear").disabled = true; predict(); });
  $("threshold").addEventListener("input", () => { $("least").textContent = Number($("threshold").value).toFixed(2); draw(); });
  for (const id of ["first", "second"]) $(id).addEventListener("change", () => { state.answers = []; layOut(); predict(); });
  $("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.token = $("token").value.trim();
    sessionStorage.setItem("token", state.token);
    loadModels().then(() => say("Drop a photograph here, or take one."), (error) => say(error.message, true));
  });
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));
  window.addEventListener("resize", draw);
  loadModels().catch((error) => say(error.message, true));
}

begin();
