// The pictures: output, input and a ControlNet's control image, ten times a second, only while someone can see them.

import { el, fill, iconButton, say } from "./dom.js";
import { link } from "./link.js";
import { follow, followStatus, set } from "./state.js";

const KINDS = ["input", "output", "control"];
const MEANWHILE = {
  stopped: "The engine is stopped.",
  loading: "The engine is loading.",
  warming_up: "The engine is warming up.",
  failed: "The engine failed; it is started again.",
};
const pictures = new Map(); // one of KINDS -> {canvas, seen}

export function buildStage() {
  const stage = document.getElementById("stage");
  const control = picture("control", "Control image");
  control.querySelector(".frame").append(iconButton("close", "Hide the control image", () => set("control_output", 0), ".over"));
  fill(stage, picture("output", "Output"), picture("input", "Input"), control);
  follow("control_output", (slot) => {
    control.hidden = !slot;
    control.classList.remove("has-picture"); // the one shown may be another slot's
    caption("control", null, slot ? `of ControlNet ${slot}` : "");
  });
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) pictures.get(entry.target.dataset.kind).seen = entry.isIntersecting;
    ask();
  });
  for (const figure of stage.children) observer.observe(figure);
  document.addEventListener("visibilitychange", ask);
  link.addEventListener("hello", () => {
    asked = "";
    ask();
  });
  link.addEventListener("picture", ({ detail }) => draw(detail));
  followStatus((now) => {
    const note = document.querySelector(".meanwhile");
    note.hidden = now.state === "streaming";
    say(note, MEANWHILE[now.state] ?? "");
    caption("output", now.outputs?.[0], `${now.fps_new.toFixed(1)} new of ${now.fps.toFixed(1)} fps`);
    caption("input", now.inputs?.[0], now.fps_in ? `${now.fps_in.toFixed(1)} fps` : "");
  });
}

/** The newest output as a small JPEG, for a preset's picture; null where none has come. */
export function outputThumbnail(side = 96) {
  const source = pictures.get("output").canvas;
  if (!source.width) return null;
  const small = el("canvas", { width: side, height: side });
  const edge = Math.min(source.width, source.height);
  const left = (source.width - edge) / 2;
  const top = (source.height - edge) / 2;
  small.getContext("2d").drawImage(source, left, top, edge, edge, 0, 0, side, side);
  return small.toDataURL("image/jpeg", 0.7);
}

function picture(kind, title) {
  const canvas = el("canvas", { role: "img", "aria-label": `${title} preview`, width: 0, height: 0 });
  const note = el("span.note");
  const figure = el(
    `figure.picture.${kind}`, { dataset: { kind } },
    el("div.frame", {}, canvas, el("p.nothing", {}, "waiting for the first frame"), kind === "output" ? el("p.meanwhile", { hidden: true }) : null, kind === "output" ? fullScreen(canvas) : null),
    el("figcaption", {}, el("b", {}, title), note),
  );
  pictures.set(kind, { canvas, note, figure, seen: true, context: canvas.getContext("2d", { alpha: false }) });
  return figure;
}

function fullScreen(canvas) {
  return iconButton("full", "Output on the whole screen", () => canvas.requestFullscreen?.(), ".over");
}

function caption(kind, texture, rate) {
  const shown = pictures.get(kind);
  if (!texture) return say(shown.note, rate);
  const size = texture.width ? `${texture.width}×${texture.height}` : "";
  const name = texture.name || texture.line || texture.backend;
  say(shown.note, [name, size, rate].filter(Boolean).join("  ·  "));
}

let asked = "";
function ask() {
  const wanted = document.hidden ? [] : KINDS.filter((kind) => pictures.get(kind).seen);
  const width = pictures.get("output").figure.clientWidth * Math.min(devicePixelRatio, 2);
  const message = { kind: "preview", pictures: wanted, size: Math.max(256, Math.min(768, Math.ceil(width / 64) * 64)) };
  const key = JSON.stringify(message);
  if (key !== asked && link.send(message)) asked = key;
}

async function draw({ kind, jpeg }) {
  const shown = pictures.get(KINDS[kind]);
  if (!shown || shown.figure.hidden) return;
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  } catch {
    return; // half a picture of a dying connection
  }
  const { canvas, context, figure } = shown;
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    figure.style.setProperty("--aspect", bitmap.width / bitmap.height);
  }
  figure.classList.add("has-picture");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
}
