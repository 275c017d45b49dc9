// MIDI: learn by touching, and the list of what was learnt.

import { el, fill, iconButton, toast } from "./dom.js";
import { link } from "./link.js";

const LOOK_AGAIN_MS = 700; // while learning

export function buildMidi(card) {
  let timer = 0;
  const load = async () => {
    clearTimeout(timer);
    try {
      const now = await link.get("/api/midi");
      draw(now);
      if (now.learning) timer = setTimeout(load, LOOK_AGAIN_MS);
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const act = async (path, body) => {
    try {
      await link.post(path, body);
    } catch (error) {
      toast(error.message, "bad");
    }
    load();
  };
  const draw = (now) => {
    const learn = el("button.quiet", { type: "button", "aria-pressed": String(now.learning), disabled: !now.available, onclick: () => act("/api/midi/learn", { on: !now.learning }) }, now.learning ? "Stop learning" : "Learn");
    const hint = now.learning ? "Touch a slider on the page, then move the fader or press the key that shall steer it." : now.available ? now.devices.join(", ") || "No MIDI device is connected." : now.reason;
    const mappings = now.mappings.map((mapping) =>
      el("div.mapping", {}, el("code", {}, mapping.control), el("span", {}, mapping.parameter), iconButton("close", `Forget ${mapping.control}`, () => act("/api/midi/forget", { control: mapping.control }))),
    );
    fill(card, el("div.card-head", {}, el("h2", {}, "MIDI"), learn), el("p.small", {}, hint), mappings);
  };
  document.addEventListener("view", ({ detail }) => detail === "connect" && load());
}
