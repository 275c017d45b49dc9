// Presets: a grid to recall with a fade, to save, rename, delete, and to morph between.

import { el, fill, iconButton, memory, say, toast } from "./dom.js";
import { link } from "./link.js";
import { outputThumbnail } from "./stage.js";
import { followStatus } from "./state.js";

const LOOK_AGAIN_MS = 10_000; // files edited by hand are told by nobody
let presets = [];
let active = "";
let editing = false;
let parts = null;

export function buildPresets() {
  const fade = el("input", { type: "range", min: 0, max: 20, step: 0.1, value: memory.get("fade", 2), "aria-label": "Fade time" });
  const shown = el("output.fade-time");
  const easing = el("select", { "aria-label": "Easing" }, ["ease_in_out", "linear", "ease_in", "ease_out"].map((name) => el("option", { value: name }, name.replaceAll("_", " "))));
  const grid = el("div.preset-grid");
  const edit = iconButton("edit", "Rename or delete presets", () => {
    editing = !editing;
    edit.setAttribute("aria-pressed", String(editing));
    draw();
  });
  const name = el("input", { type: "text", placeholder: "Save this look as…", "aria-label": "Name of the new preset", maxlength: 100, autocomplete: "off" });
  const save = (event) => {
    event.preventDefault();
    if (name.value.trim()) keep(name.value.trim()).then((done) => done && (name.value = ""));
  };
  const paint = () => {
    say(shown, fade.valueAsNumber ? `${fade.valueAsNumber.toFixed(1)} s` : "cut");
    fade.style.setProperty("--fill", `${(100 * fade.valueAsNumber) / 20}%`);
    memory.set("fade", fade.valueAsNumber);
  };
  fade.addEventListener("input", paint);
  paint();
  parts = { grid, fade, easing, morph: buildMorph() };
  fill(
    document.getElementById("presets"),
    el("div.card-head", {}, el("h2", {}, "Presets"), edit),
    el("div.fade-row", {}, el("span", {}, "Fade"), fade, shown, easing),
    grid,
    el("form.save-row", { onsubmit: save }, name, el("button", { type: "submit" }, "Save")),
    parts.morph.node,
  );
  load();
  link.addEventListener("hello", load);
  link.addEventListener("show", ({ detail }) => detail.topic === "presets" && load());
  setInterval(() => document.hidden || load(), LOOK_AGAIN_MS);
  followStatus((now) => {
    if (now.preset === undefined || now.preset === active) return;
    active = now.preset;
    mark();
  });
}

/** Recall the preset at a place of the grid, for the number keys. */
export function recallPlace(place) {
  if (presets[place]) recall(presets[place]);
}

async function load() {
  try {
    take(await link.get("/api/presets"));
  } catch {
    // without a connection the grid stays as it is
  }
}

function take(listed) {
  active = listed.active;
  const same = JSON.stringify(presets) === JSON.stringify(listed.presets);
  presets = listed.presets;
  if (!same || !parts.grid.childElementCount) draw();
  mark();
}

function draw() {
  parts.grid.classList.toggle("editing", editing);
  fill(parts.grid, presets.map(editing ? editCard : card));
  if (!presets.length) parts.grid.append(el("p.empty", {}, "No presets yet. Save the look of now, then come back to it with one touch."));
  parts.morph.offer();
}

function card(preset) {
  const picture = memory.get("pictures", {})[preset.name];
  const node = el(
    "button.preset", { type: "button", dataset: { name: preset.name }, title: preset.error || preset.prompt, onclick: () => recall(preset) },
    el("span.preset-fill"), el("span.preset-number", {}, preset.number),
    el("span.preset-text", {}, el("b", {}, preset.name), el("small", {}, preset.error ? "file is broken" : preset.prompt)),
  );
  if (picture?.startsWith("data:image/jpeg;base64,")) {
    node.style.setProperty("--picture", `url("${picture}")`);
    node.classList.add("pictured");
  }
  if (preset.error) node.classList.add("broken");
  return node;
}

function editCard(preset) {
  const field = el("input", { type: "text", value: preset.name, maxlength: 100, "aria-label": `Name of preset ${preset.number}` });
  field.addEventListener("change", () => act("/api/presets/rename", { preset: preset.number, name: field.value }, "Renamed"));
  const again = iconButton("reset", `Save the look of now over ${preset.name}`, () => keep(preset.name));
  const remove = iconButton("close", `Delete ${preset.name}`, () => {
    if (confirm(`Delete the preset “${preset.name}”? Its file goes to the folder “deleted”.`)) act("/api/presets/delete", { preset: preset.number }, "Deleted");
  });
  return el("div.preset-edit", {}, el("span.preset-number", {}, preset.number), field, again, remove);
}

function mark() {
  for (const node of parts.grid.querySelectorAll(".preset")) node.classList.toggle("active", node.dataset.name === active);
}

async function recall(preset) {
  const seconds = parts.fade.valueAsNumber;
  const node = [...parts.grid.children].find((one) => one.dataset.name === preset.name);
  const done = await act("/api/presets/recall", { preset: preset.number, fade_s: seconds, easing: parts.easing.value });
  if (!done) return;
  active = preset.name;
  mark();
  const bar = node?.querySelector(".preset-fill");
  if (bar && seconds) bar.animate([{ transform: "scaleX(0)", opacity: 1 }, { transform: "scaleX(1)", opacity: 1 }], { duration: seconds * 1000 });
}

async function keep(name) {
  const picture = outputThumbnail();
  const done = await act("/api/presets/save", { name }, `Saved “${name}”`);
  if (done && picture) {
    memory.set("pictures", { ...memory.get("pictures", {}), [name]: picture });
    draw();
  }
  return done;
}

/** Ask the bridge; an answer with a list is taken over. Says whether it went well. */
async function act(path, body, good = "") {
  try {
    const answer = await link.post(path, body);
    if (answer.presets) take(answer);
    for (const refusal of answer.rejected ?? []) toast(refusal.message, "bad");
    if (good) toast(good);
    return true;
  } catch (error) {
    toast(error.message, "bad");
    return false;
  }
}

/** One fader between two presets. */
function buildMorph() {
  const pick = (label) => el("select", { "aria-label": label });
  const [a, b] = [pick("Morph from"), pick("Morph to")];
  const fader = el("input", { type: "range", min: 0, max: 1, step: 0.005, value: 0, "aria-label": "Morph position" });
  let busy = false;
  let again = false;
  const send = async () => {
    if (busy) return (again = true);
    busy = true;
    await act("/api/presets/morph", { a: Number(a.value), b: Number(b.value), position: fader.valueAsNumber });
    busy = false;
    if (again) {
      again = false;
      send();
    }
  };
  fader.addEventListener("input", () => {
    fader.style.setProperty("--fill", `${100 * fader.valueAsNumber}%`);
    send();
  });
  const node = el("div.morph", { hidden: true }, el("small", {}, "Morph: one fader between two presets"), a, b, fader);
  const offer = () => {
    const usable = presets.filter((preset) => !preset.error);
    node.hidden = usable.length < 2;
    for (const [at, list] of [a, b].entries()) {
      const kept = list.value;
      fill(list, usable.map((preset) => el("option", { value: preset.number }, preset.name)));
      list.value = usable.some((preset) => String(preset.number) === kept) ? kept : String(usable[at]?.number ?? "");
    }
  };
  return { node, offer };
}
