// The strip at the top: state, numbers, and the three buttons that rescue a show.

import { el, fill, say } from "./dom.js";
import { link } from "./link.js";
import { fire, follow, followStatus, set, values } from "./state.js";

const OUTPUT_WORDS = {
  live: "live",
  holding: "holding the last frame",
  fading: "fading to the fallback",
  fallback: "showing the fallback",
  frozen: "frozen",
  black: "black",
};

export function buildStrip() {
  buildNumbers();
  buildState();
  buildRescue();
}

function buildNumbers() {
  const list = document.getElementById("numbers");
  const number = (label, title, wide = "") => {
    const value = el("dd");
    list.append(el(`div.number${wide}`, { title }, el("dt", {}, label), value));
    return value;
  };
  const fps = number("new / sent fps", "pictures painted each second, and pictures sent: what is not new is the last one again");
  const latency = number("latency ms", "input received to output sent: half are faster than the first number, 99 % faster than the second");
  const drops = number("dropped", "input frames replaced by newer ones before use");
  const held = number("held", "output frames repeated because the engine was late", ".spare");
  const vram = number("VRAM GB", "GPU memory in use", ".spare");
  vram.parentElement.hidden = true;
  followStatus((now) => {
    say(fps, `${Math.round(now.fps_new)} / ${Math.round(now.fps)}`);
    const { p50, p99 } = now.latency_ms;
    say(latency, p99 ? `${Math.round(p50)} / ${Math.round(p99)}` : "–");
    say(drops, short(now.dropped));
    say(held, short(now.held));
    vram.parentElement.hidden = !now.vram_mb;
    const total = now.vram_total_mb ? ` / ${(now.vram_total_mb / 1024).toFixed(0)}` : "";
    say(vram, (now.vram_mb / 1024).toFixed(1) + total);
  });
}

function buildState() {
  const pill = document.getElementById("state");
  const text = pill.querySelector("span");
  const show = (kind, words) => {
    if (pill.dataset.kind !== kind) pill.dataset.kind = kind;
    say(text, words);
  };
  followStatus((now) => {
    const engine = now.state.replace("_", " ");
    if (now.output !== "live" && now.state === "streaming") show("held", OUTPUT_WORDS[now.output] ?? now.output);
    else show({ streaming: "live", failed: "failed" }[now.state] ?? "busy", engine);
    pill.title = now.engine_line || now.engine_kind;
  });
  link.addEventListener("lost", () => show("failed", "no connection"));
}

function buildRescue() {
  const toggle = (label, name, title) => {
    const button = el("button", { type: "button", title, "aria-pressed": "false", onclick: () => set(name, !values.get(name)) }, label);
    follow(name, (on) => button.setAttribute("aria-pressed", String(Boolean(on))));
    return button;
  };
  fill(
    document.getElementById("rescue"),
    toggle("Freeze", "output.freeze", "Hold the present picture; the engine goes on (F)"),
    toggle("Black", "output.black", "Show black until released; the engine goes on (B)"),
    el("button.panic", { type: "button", title: "Cut to black, stop all fades and cues (Shift+Escape)", onclick: () => fire("panic") }, "Panic"),
  );
}

function short(count) {
  return count < 10_000 ? String(count) : count < 1e6 ? `${(count / 1000).toFixed(1)}k` : `${(count / 1e6).toFixed(1)}M`;
}
