// One parameter's control: slider, switch, choice, text or button, made from its row.

import { copy, el, icon, iconButton, say } from "./dom.js";
import { fire, follow, followStatus, rows, set, status, values } from "./state.js";

const RELEASE_MS = 350; // after the finger leaves, before others may move the slider again
const DECIDED_PX = 6;
const COSTS = {
  live: "Shows in the next frame.",
  reencode: "New embeddings are made beside the stream.",
  reload: "A new engine loads beside the running one.",
  bridge: "Acts on the bridge itself.",
};

/** The whole row: title, value, control, and on demand what it is and its OSC address. */
export function control(name, { title = null } = {}) {
  const row = rows.get(name);
  const id = `p-${name.replaceAll(".", "-")}-${serial++}`;
  const body = CONTROLS[shape(row)](row, id);
  const about = el("div.about", { hidden: true });
  const heading = el(
    "button.title", { type: "button", "aria-expanded": "false", title: row.help }, title ?? titleOf(row),
  );
  heading.addEventListener("click", () => {
    about.hidden = !about.hidden;
    heading.setAttribute("aria-expanded", String(!about.hidden));
    if (!about.childElementCount) explain(about, row);
  });
  const reset = iconButton("reset", `Reset to ${readable(row, row.default)}`, () => set(name, row.default), ".reset");
  const address = iconButton("copy", `Copy ${row.address}`, () => copy(row.address, `Copied ${row.address}`), ".address");
  const node = el(
    `div.control.${shape(row)}`, { dataset: { name } },
    el("div.head", {}, heading, address, row.kind === "trigger" ? null : reset, body.value ?? null),
    body.node, about,
  );
  node.classList.toggle("idle", Boolean(status.unused?.includes(name)));
  if (row.kind !== "trigger") {
    follow(name, (value) => {
      node.classList.toggle("changed", !isDefault(row, value));
      body.show(value);
    });
  }
  return node;
}

let serial = 0;

/** What is set and does nothing as things stand says so: a fader of another sampler, a file that was refused. */
let idle = "";
followStatus(({ unused }) => {
  const key = (unused ?? []).join();
  if (key === idle) return;
  idle = key;
  for (const node of document.querySelectorAll(".control[data-name]")) node.classList.toggle("idle", unused.includes(node.dataset.name));
});

/** The row's title with abbreviations as people write them. */
export function titleOf(row) {
  return row.title.replace(/\b(tcd|fps|vae|lora|clip)\b/gi, (word) => (word.toLowerCase() === "lora" ? "LoRA" : word.toUpperCase()));
}

/** Which control a row gets. */
function shape(row) {
  if (row.kind === "trigger") return "press";
  if (row.kind === "bool") return "switch";
  if (row.kind === "str") return "text";
  if (row.kind === "enum") return row.choices.join("").length <= 26 && row.choices.length <= 5 ? "segments" : "select";
  const wide = row.maximum === null || row.minimum === null || (row.kind === "int" && row.maximum - row.minimum > 4096);
  return wide ? "number" : "slider";
}

const CONTROLS = { slider, number, switch: toggle, segments, select, text, press };

function slider(row, id) {
  const step = row.kind === "int" ? row.multiple_of || 1 : stepOf(row.maximum - row.minimum);
  const range = el("input", { type: "range", id, min: row.minimum, max: row.maximum, step, "aria-label": row.title });
  const field = numberField(row, step);
  let heldUntil = 0;
  let held = false;
  const paint = (value) => {
    range.style.setProperty("--fill", `${(100 * (value - row.minimum)) / (row.maximum - row.minimum || 1)}%`);
    range.setAttribute("aria-valuetext", readable(row, value));
  };
  const show = (value) => {
    field.show(value);
    paint(value);
    if (held || performance.now() < heldUntil) return; // the finger is on it
    range.value = value;
  };
  const letGo = () => {
    held = false;
    heldUntil = performance.now() + RELEASE_MS;
    setTimeout(() => show(values.get(row.name)), RELEASE_MS + 20);
  };
  const send = () => {
    const value = row.kind === "int" ? Math.round(range.valueAsNumber) : rounded(range.valueAsNumber);
    paint(value);
    if (!undecided && value !== values.get(row.name)) set(row.name, value);
  };
  // A finger that lands on a slider may only want to scroll the page: nothing is sent before it moves sideways.
  let undecided = false;
  let from = 0;
  range.addEventListener("pointerdown", (event) => {
    held = true;
    from = event.clientX;
    undecided = event.pointerType === "touch";
  });
  range.addEventListener("pointermove", (event) => {
    if (!undecided || Math.abs(event.clientX - from) < DECIDED_PX) return;
    undecided = false;
    send();
  });
  range.addEventListener("pointerup", () => {
    const tapped = undecided;
    undecided = false;
    if (tapped) send();
    letGo();
  });
  range.addEventListener("pointercancel", () => {
    if (undecided) range.value = values.get(row.name);
    undecided = false;
    letGo();
  });
  range.addEventListener("keydown", () => (heldUntil = performance.now() + RELEASE_MS));
  range.addEventListener("dblclick", () => set(row.name, row.default));
  range.addEventListener("input", send);
  return { node: el("div.track", {}, range), value: field.node, show };
}

function number(row) {
  const field = numberField(row, row.multiple_of || 1);
  const dice = () => set(row.name, Math.floor(Math.random() * 1_000_000));
  const isSeed = row.group === "seed";
  return {
    node: el("div.number-row", {}, field.node, isSeed ? iconButton("dice", `Another ${row.title.toLowerCase()}`, dice) : null),
    show: field.show,
  };
}

/** A field for exact numbers; what is typed counts on Enter or when it is left. */
function numberField(row, step) {
  const field = el("input.exact", { type: "number", step: row.kind === "int" ? step : "any", min: row.minimum, max: row.maximum, inputmode: "decimal", "aria-label": `${row.title}, exact value` });
  const commit = () => {
    if (!Number.isFinite(field.valueAsNumber)) return show(values.get(row.name));
    const low = row.minimum ?? -Infinity;
    const high = row.maximum ?? Infinity;
    const value = Math.min(Math.max(field.valueAsNumber, low), high);
    if (value !== values.get(row.name)) set(row.name, row.kind === "int" ? Math.round(value) : value);
  };
  const show = (value) => {
    if (document.activeElement === field) return;
    field.value = row.kind === "int" ? value : shortest(value, row);
  };
  field.addEventListener("change", commit);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") field.blur();
    if (event.key === "Escape") {
      field.value = values.get(row.name);
      field.blur();
    }
  });
  field.addEventListener("blur", () => show(values.get(row.name)));
  return { node: el("label.exact-with-unit", {}, field, row.unit ? el("span", {}, row.unit) : null), show };
}

function toggle(row, id) {
  const box = el("input", { type: "checkbox", role: "switch", id, "aria-label": row.title });
  box.addEventListener("change", () => set(row.name, box.checked));
  return { node: el("label.switch-box", { for: id }, box, el("i")), show: (value) => (box.checked = value) };
}

function segments(row) {
  const buttons = row.choices.map((choice) =>
    el("button", { type: "button", role: "radio", "aria-checked": "false", onclick: () => set(row.name, choice) }, choice.replaceAll("_", " ")),
  );
  const group = el("div.segment-row", { role: "radiogroup", "aria-label": row.title }, buttons);
  group.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const next = (row.choices.indexOf(values.get(row.name)) + move + row.choices.length) % row.choices.length;
    set(row.name, row.choices[next]);
    buttons[next].focus();
  });
  const show = (value) =>
    buttons.forEach((button, i) => {
      const on = row.choices[i] === value;
      button.setAttribute("aria-checked", String(on));
      button.tabIndex = on ? 0 : -1;
    });
  return { node: group, show };
}

function select(row, id) {
  const list = el(
    "select", { id, "aria-label": row.title },
    row.choices.map((choice) => el("option", { value: choice }, choice.replaceAll("_", " "))),
  );
  list.addEventListener("change", () => set(row.name, list.value));
  return { node: list, show: (value) => (list.value = value) };
}

/** A line of text; sent on Enter or when it is left, never half-typed. */
function text(row, id) {
  const field = el("input", { type: "text", id, "aria-label": row.title, placeholder: hint(row), list: knownOf(row), spellcheck: "false", autocomplete: "off" });
  const commit = () => field.value !== values.get(row.name) && set(row.name, field.value);
  field.addEventListener("change", commit);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") commit();
    if (event.key === "Escape") {
      field.value = values.get(row.name);
      field.blur();
    }
  });
  const show = (value) => {
    if (document.activeElement !== field) field.value = value;
  };
  return { node: field, show };
}

/** The list of what is here and fits into this field (models.js fills it). */
function knownOf(row) {
  const kinds = [[/^lora\.\d+\.file$/, "lora"], [/^controlnet\.\d+\.model$/, "controlnet"], [/^model$/, "checkpoint"], [/^style_model$/, "style"]];
  const kind = kinds.find(([name]) => name.test(row.name))?.[1];
  return kind ? `known-${kind}` : null;
}

function press(row) {
  return { node: el("button.fire", { type: "button", onclick: () => fire(row.name) }, titleOf(row)), show() {} };
}

function explain(about, row) {
  const line = el("p.range");
  say(line, `${row.range}${row.kind === "trigger" ? "" : `, default ${readable(row, row.default)}`}. ${COSTS[row.effect]}`);
  const address = el("button.address-line", { type: "button", title: "Copy", onclick: () => copy(row.address, `Copied ${row.address}`) }, el("code", {}, row.address), icon("copy"));
  about.append(el("p", {}, row.help), line, address);
}

function hint(row) {
  return row.name === "step_indices" ? "from strength" : "";
}

function stepOf(span) {
  return span <= 1 ? 0.005 : span <= 4 ? 0.01 : span <= 20 ? 0.05 : 0.1;
}

function rounded(value) {
  return Number(value.toFixed(4));
}

function shortest(value, row) {
  const digits = (row.maximum ?? 0) - (row.minimum ?? 0) > 20 ? 1 : 3;
  return String(Number(Number(value).toFixed(digits)));
}

/** Whether a value is the default; OSC carries 32 bits, so 0.3 comes back as 0.30000001. */
export function isDefault(row, value) {
  if (typeof value !== "number") return value === row.default;
  return Math.abs(value - row.default) <= 1e-6 * Math.max(1, Math.abs(row.default));
}

/** A value as a person says it. */
export function readable(row, value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (typeof value === "number") return `${shortest(value, row)} ${row.unit}`.trim();
  return value === "" ? "empty" : String(value);
}
