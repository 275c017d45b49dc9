// The prompt: one large box, words to choose from, further prompts blended by weight.

import { el, fill, icon, iconButton, memory } from "./dom.js";
import { control } from "./control.js";
import { link } from "./link.js";
import { follow, followStatus, rows, set, status, values } from "./state.js";

const TYPING_MS = 350;
const STATUS_MS = 600; // the status comes four times a second
const MOST_RECENT = 12;
let vocabulary = []; // words that the model knows
let examples = []; // whole prompts to begin with

export function buildPrompt() {
  const chips = el("div.chips", { "aria-label": "Suggestions" });
  const main = box("prompt.1.text", chips);
  const more = el("div.more-prompts");
  const details = el(
    "details.fold", {}, el("summary", {}, "Negative prompt and transition"),
    el("div.grid", {}, control("negative_prompt"), control("prompt_transition"), control("prompt_blend")),
  );
  fill(document.getElementById("prompt"), main.node, chips, more, details);
  blend(more);
  main.suggest();
  const reload = () => loadWords().then(main.suggest);
  link.addEventListener("hello", reload);
  follow("model", reload);
}

/** The large box. Enter sends, Shift+Enter breaks the line; or every word as it is typed. */
function box(name, chips) {
  const area = el("textarea", { id: "prompt-text", rows: 2, "aria-label": "Prompt", placeholder: "What should the picture show?", spellcheck: "false", enterkeyhint: "send" });
  const send = el("button.send", { type: "button" }, "Send");
  const typing = el("input", { type: "checkbox" });
  typing.checked = memory.get("as-i-type", false);
  let timer = 0;
  const commit = () => {
    clearTimeout(timer);
    const text = area.value.trim();
    if (text !== values.get(name)) set(name, text);
    remember(text);
    mark();
    suggest();
  };
  const mark = () => send.classList.toggle("waiting", area.value.trim() !== values.get(name));
  const suggest = () => fill(chips, words(area.value).map((word) => chip(word, take)));
  const take = (word) => {
    area.value = merged(area.value, word);
    commit();
    grow(area);
    area.focus();
  };
  area.addEventListener("input", () => {
    grow(area);
    mark();
    suggest();
    if (!typing.checked) return;
    clearTimeout(timer);
    timer = setTimeout(commit, TYPING_MS);
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      commit();
    }
    if (event.key === "Escape") {
      area.value = values.get(name);
      mark();
      area.blur();
    }
  });
  send.addEventListener("click", commit);
  typing.addEventListener("change", () => memory.set("as-i-type", typing.checked));
  follow(name, (text) => {
    if (document.activeElement !== area || area.value.trim() === "") area.value = text;
    grow(area);
    mark();
  });
  const row = el("div.prompt-row", {}, area, send);
  const note = el("div.prompt-note", {}, el("h2", {}, "Prompt"), el("label.tiny", {}, typing, "send as I type"));
  return { node: el("div", {}, note, row), suggest };
}

/**
 * Prompts 2 to 8, each with its weight; only those with text are shown, and one more on demand.
 * A fade borrows slots for its old texts: those are not shown, or the sliders below would jump with every cue.
 */
function blend(shelf) {
  const numbers = [...rows.keys()].map((name) => /^prompt\.(\d+)\.text$/.exec(name)?.[1]).filter(Boolean).map(Number);
  const opened = new Set();
  const lines = new Map();
  const firstWeight = el("div.blend-line.first", {}, control("prompt.1.weight", { title: "Weight of the prompt above" }));
  const list = el("div");
  const add = el("button.add", { type: "button" }, icon("plus"), "Blend another prompt");
  const settled = new Set(); // slots with a text that was there before the fade
  const used = (slot) => opened.has(slot) || settled.has(slot);
  const settle = () => {
    if (status.fading) return;
    settled.clear();
    for (const slot of numbers) if (values.get(`prompt.${slot}.text`) !== "") settled.add(slot);
    draw();
  };
  let timer = 0;
  const settleSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(settle, STATUS_MS); // the status that tells of a fade comes after its first values
  };
  const draw = () => {
    const now = numbers.filter((slot) => slot > 1 && used(slot));
    for (const slot of now) if (!lines.has(slot)) lines.set(slot, line(slot));
    const nodes = now.map((slot) => lines.get(slot));
    if (nodes.length !== list.children.length || nodes.some((node, at) => list.children[at] !== node)) fill(list, nodes);
    firstWeight.hidden = !now.length;
    add.hidden = now.length >= numbers.length - 1;
  };
  const line = (slot) => {
    const remove = () => {
      opened.delete(slot);
      settled.delete(slot);
      set(`prompt.${slot}.text`, "");
      set(`prompt.${slot}.weight`, 0);
      draw();
    };
    return el(
      "div.blend-line", {}, control(`prompt.${slot}.text`, { title: `Prompt ${slot}` }),
      control(`prompt.${slot}.weight`, { title: "Weight" }), iconButton("close", `Remove prompt ${slot}`, remove),
    );
  };
  add.addEventListener("click", () => {
    const free = numbers.find((slot) => slot > 1 && !used(slot));
    opened.add(free);
    if (!values.get(`prompt.${free}.weight`)) set(`prompt.${free}.weight`, 0.5);
    draw();
    lines.get(free).querySelector("input[type=text]").focus();
  });
  for (const slot of numbers) follow(`prompt.${slot}.text`, settleSoon);
  settle(); // at once: what is drawn later would move what a finger is on its way to
  let fading = false;
  followStatus((now) => {
    if (fading && !now.fading) settleSoon();
    fading = now.fading;
  });
  fill(shelf, firstWeight, list, add);
}

async function loadWords() {
  try {
    ({ words: vocabulary, examples } = await link.get("/api/vocabulary"));
  } catch {
    // without suggestions the box is still a box
  }
}

/** What to offer: words that begin like the one being typed, else whole prompts used before and known ones. */
function words(text) {
  const last = /[\p{L}\p{N}-]+$/u.exec(text)?.[0].toLowerCase() ?? "";
  const table = rows.get("prompt.1.text").suggestions ?? [];
  if (last.length > 1) {
    const begun = vocabulary.filter((word) => word.toLowerCase().startsWith(last) && word.toLowerCase() !== last);
    if (begun.length) return begun.slice(0, 12);
  }
  const fresh = vocabulary.filter((word) => !text.toLowerCase().includes(word.toLowerCase()));
  const recent = memory.get("prompts", []).filter((one) => one !== text.trim()).slice(0, 4);
  const whole = [...table, ...examples].filter((one) => one !== text.trim());
  return [...new Set([...(text.trim() ? [] : recent), ...whole, ...recent, ...fresh])].slice(0, 40);
}

/** A chosen word ends the one being typed; a whole prompt takes the place of the text. */
function merged(text, word) {
  const last = /[\p{L}\p{N}-]+$/u.exec(text)?.[0] ?? "";
  if (last && word.toLowerCase().startsWith(last.toLowerCase())) return text.slice(0, text.length - last.length) + word;
  if (!vocabulary.includes(word)) return word;
  return text.trim() ? `${text.trim()} ${word}` : word;
}

function chip(word, take) {
  const short = word.length > 42 ? `${word.slice(0, 40)}…` : word;
  return el("button.chip", { type: "button", title: word, onclick: () => take(word) }, short);
}

function remember(text) {
  if (!text) return;
  const kept = memory.get("prompts", []).filter((one) => one !== text);
  memory.set("prompts", [text, ...kept].slice(0, MOST_RECENT));
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, 260)}px`;
}
