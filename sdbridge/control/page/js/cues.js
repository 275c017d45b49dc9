// The cue list: where it stands, go, next and back.

import { el, fill, toast } from "./dom.js";
import { link } from "./link.js";
import { followStatus } from "./state.js";

let cues = [];
let position = 0;
let standing = null;
let follows = false; // whether the next one comes by itself; a prompt written by hand stops that

export function buildCues() {
  load();
  followStatus((now) => {
    if (now.cue === standing && now.cue_follows === follows) return;
    [standing, follows] = [now.cue, now.cue_follows];
    load();
  });
  link.addEventListener("hello", load);
  link.addEventListener("show", ({ detail }) => detail.topic === "cue" && load());
}

export async function go(path, body = {}) {
  try {
    await link.post(`/api/cues/${path}`, body);
    await load();
  } catch (error) {
    toast(error.message, "bad");
  }
}

async function load() {
  try {
    ({ cues, position } = await link.get("/api/cues"));
    draw();
  } catch {
    // without a connection the list stays as it is
  }
}

function draw() {
  const section = document.getElementById("cues");
  section.hidden = !cues.length;
  if (!cues.length) return;
  const list = el("ol.cue-list", {}, cues.map((cue) => line(cue)));
  const next = cues[position];
  fill(
    section,
    el("div.card-head", {}, el("h2", {}, "Cues"), el("button.quiet", { type: "button", title: "Stop every fade where it is; no cue follows by itself", onclick: () => go("stop") }, "Stop")),
    list,
    el(
      "div.cue-buttons", {},
      el("button", { type: "button", disabled: position < 2, onclick: () => go("previous") }, "Back"),
      el("button.go", { type: "button", disabled: !next, onclick: () => go("next") }, "Go", el("small", {}, next ? next.name : "end of the list")),
    ),
  );
  const now = list.querySelector(".now");
  if (now) list.scrollTop = now.offsetTop - list.offsetTop - list.clientHeight / 3; // the list, never the page
}

function line(cue) {
  const next = cue.place === position && !follows ? "waits for Go" : `then next after ${cue.follow_s} s`;
  const times = [cue.fade_s ? `${cue.fade_s} s` : "cut", cue.follow_s === null ? "" : next];
  const state = cue.place === position ? ".now" : cue.place < position ? ".past" : "";
  return el(
    `li${state}`, {},
    el(
      "button", { type: "button", "aria-current": cue.place === position ? "step" : null, onclick: () => go("go", { cue: cue.place }) },
      el("span.cue-place", {}, cue.place), el("b", {}, cue.name), el("small", {}, times.filter(Boolean).join(", ")),
    ),
  );
}
