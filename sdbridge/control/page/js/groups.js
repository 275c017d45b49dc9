// The controls: every parameter in its group, found by search, slots shown only where used.

import { el, fill, icon, iconButton, memory } from "./dom.js";
import { control, isDefault } from "./control.js";
import { follow, rows, set, values } from "./state.js";

const TITLES = {
  generate: "Generate",
  seed: "Seeds",
  controlnet: "ControlNets",
  lora: "LoRAs",
  style: "Style images",
  mask: "Mask",
  consistency: "Consistency",
  similarity: "Similarity filter",
  hooks: "Before and after",
  prompt: "Prompt details",
  output: "Output and hold",
  engine: "Engine",
};
const OPEN_AT_FIRST = ["generate", "seed"];
const ELSEWHERE = /^prompt\.\d+\.|^negative_prompt$|^output\.(freeze|black)$|^panic$/; // they have places of their own
const SLOT = /^([a-z_]+)\.(\d+)\.([a-z_]+)$/;
/** What makes a slot count as used. */
const USED = {
  controlnet: (slot) => values.get(`controlnet.${slot}.model`) !== "",
  lora: (slot) => values.get(`lora.${slot}.file`) !== "",
  style: (slot) => values.get(`style.${slot}.source`) !== "off",
  seed: (slot) => slot === 1 || values.get(`seed.${slot}.weight`) > 0,
};
const NOUN = { controlnet: "ControlNet", lora: "LoRA", style: "style image", seed: "seed" };

export function buildControls() {
  const section = document.getElementById("controls");
  const groups = new Map();
  for (const row of rows.values()) {
    if (ELSEWHERE.test(row.name)) continue;
    if (!groups.has(row.group)) groups.set(row.group, []);
    groups.get(row.group).push(row);
  }
  const order = [...Object.keys(TITLES), ...groups.keys()].filter((name, at, all) => groups.has(name) && all.indexOf(name) === at);
  const field = el("input", { type: "search", id: "search", placeholder: `Search ${rows.size} parameters`, "aria-label": "Search parameters", autocomplete: "off", spellcheck: "false" });
  const found = el("div.found.grid");
  const list = el("div.groups", {}, order.map((name) => group(name, groups.get(name))));
  field.addEventListener("input", () => search(field.value, found, list));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    field.value = "";
    search("", found, list);
    field.blur();
  });
  fill(section, el("label.search", {}, icon("search"), field), found, list);
}

function group(name, members) {
  const remembered = memory.get("open", OPEN_AT_FIRST);
  const single = members.filter((row) => !SLOT.test(row.name));
  const slotted = members.filter((row) => SLOT.test(row.name));
  const badge = el("span.badge", { hidden: true });
  const node = el("details.group", { dataset: { group: name } }, el("summary", {}, el("h2", {}, TITLES[name] ?? name), badge));
  node.open = remembered.includes(name);
  const body = el("div.group-body");
  let built = false;
  const build = () => {
    if (built || !node.open) return;
    built = true;
    if (slotted.length) body.append(slots(slotted));
    if (single.length) body.append(el("div.grid", {}, single.map((row) => control(row.name))));
  };
  node.append(body);
  node.addEventListener("toggle", () => {
    build();
    const open = new Set(memory.get("open", OPEN_AT_FIRST));
    node.open ? open.add(name) : open.delete(name);
    memory.set("open", [...open]);
  });
  build();
  countChanges(members, badge);
  return node;
}

/** The small number beside a group's title: how many of its values are not the default. */
function countChanges(members, badge) {
  const changed = new Set();
  for (const row of members) {
    if (row.kind === "trigger") continue;
    follow(row.name, (value) => {
      isDefault(row, value) ? changed.delete(row.name) : changed.add(row.name);
      badge.hidden = !changed.size;
      badge.textContent = changed.size;
      badge.title = `${changed.size} changed from the default`;
    });
  }
}

/** Cards of the used slots of one kind, and a button that takes the next free one. */
function slots(members) {
  const kind = SLOT.exec(members[0].name)[1];
  const numbers = [...new Set(members.map((row) => Number(SLOT.exec(row.name)[2])))];
  const opened = new Set();
  const cards = new Map();
  const shelf = el("div.slots");
  const add = el("button.add", { type: "button" }, icon("plus"), `Add ${NOUN[kind] ?? kind}`);
  const draw = () => {
    for (const slot of numbers) {
      const used = opened.has(slot) || USED[kind]?.(slot);
      if (used && !cards.has(slot)) cards.set(slot, card(slot));
      if (cards.has(slot)) cards.get(slot).hidden = !used;
    }
    const inOrder = numbers.filter((slot) => cards.has(slot)).map((slot) => cards.get(slot));
    if (inOrder.some((node, at) => shelf.children[at] !== node)) fill(shelf, inOrder);
    add.hidden = numbers.every((slot) => opened.has(slot) || USED[kind]?.(slot));
  };
  const card = (slot) => {
    const mine = members.filter((row) => row.name.startsWith(`${kind}.${slot}.`));
    const remove = () => {
      opened.delete(slot);
      for (const row of mine) if (row.kind !== "trigger" && !isDefault(row, values.get(row.name))) set(row.name, row.default);
      if (kind === "seed") set(`seed.${slot}.weight`, 0);
      draw();
    };
    const word = NOUN[kind] ?? kind;
    const buttons = kind === "controlnet" ? [eye(slot)] : [];
    if (kind !== "seed" || slot > 1) buttons.push(iconButton("close", `Remove ${word} ${slot}`, remove));
    const short = (row) => (row.title.replace(/^.*? \d+ ?/, "") || "value").replace(/^./, (letter) => letter.toUpperCase());
    return el(
      "div.slot", { dataset: { slot } },
      el("div.slot-head", {}, el("h3", {}, `${word.charAt(0).toUpperCase()}${word.slice(1)} ${slot}`), el("span.slot-buttons", {}, buttons)),
      el("div.grid", {}, mine.map((row) => control(row.name, { title: short(row) }))),
    );
  };
  add.addEventListener("click", () => {
    const free = numbers.find((slot) => !opened.has(slot) && !USED[kind]?.(slot));
    if (!free) return;
    opened.add(free);
    if (kind === "seed") set(`seed.${free}.weight`, 1);
    draw();
    cards.get(free).querySelector("input, select")?.focus();
  });
  for (const row of members) if (row.kind !== "trigger") follow(row.name, draw);
  return el("div", {}, shelf, add);
}

/** Shows what a ControlNet sees among the pictures, and sends it on the control output. */
function eye(slot) {
  const node = iconButton("eye", `Show what ControlNet ${slot} sees`, () => set("control_output", values.get("control_output") === slot ? 0 : slot));
  follow("control_output", (shown) => node.setAttribute("aria-pressed", shown === slot));
  return node;
}

function search(words, found, list) {
  const wanted = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
  list.hidden = wanted.length > 0;
  const hits = wanted.length
    ? [...rows.values()].filter((row) => {
        const text = `${row.name} ${row.address} ${row.title} ${row.help} ${row.group}`.toLowerCase();
        return wanted.every((word) => text.includes(word));
      })
    : [];
  const named = (row) => wanted.every((word) => `${row.name} ${row.title}`.toLowerCase().includes(word));
  hits.sort((a, b) => named(b) - named(a)); // what is called so comes before what only speaks of it
  fill(found, hits.slice(0, 40).map((row) => control(row.name)));
  if (wanted.length && !hits.length) found.append(el("p.empty", {}, `No parameter speaks of “${words.trim()}”.`));
}
