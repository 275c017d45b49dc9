// The keyboard: a few single keys, which can be switched off, and the list of them.

import { el, fill, memory } from "./dom.js";
import { go } from "./cues.js";
import { recallPlace } from "./presets.js";
import { fire, set, values } from "./state.js";

const LIST = [
  ["P", "to the prompt"],
  ["/", "search parameters"],
  ["F", "freeze the output"],
  ["B", "black"],
  ["Shift + Esc", "PANIC, works everywhere"],
  ["1 to 9", "recall a preset with the fade time"],
  ["N", "next cue"],
  ["?", "this list"],
];

export function buildKeys() {
  const dialog = document.getElementById("keys");
  const box = el("input", { type: "checkbox" });
  box.checked = memory.get("keys", true);
  box.addEventListener("change", () => memory.set("keys", box.checked));
  fill(
    dialog, el("h2", {}, "Keyboard"),
    el("dl", {}, LIST.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)))),
    el("label.tiny", {}, box, "single keys act"),
    el("button", { type: "button", onclick: () => dialog.close() }, "Close"),
  );
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.shiftKey) {
      event.preventDefault();
      return fire("panic");
    }
    const typing = event.target.matches?.("input:not([type=range], [type=checkbox]), textarea, select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !memory.get("keys", true) || dialog.open) return;
    const act = actions(dialog)[event.key.toLowerCase()];
    if (act) {
      event.preventDefault();
      act();
    } else if (/^[1-9]$/.test(event.key)) {
      recallPlace(Number(event.key) - 1);
    }
  });
}

function actions(dialog) {
  return {
    p: () => document.getElementById("prompt-text").focus(),
    "/": () => document.getElementById("search").focus(),
    f: () => set("output.freeze", !values.get("output.freeze")),
    b: () => set("output.black", !values.get("output.black")),
    n: () => go("next"),
    "?": () => dialog.showModal(),
  };
}
