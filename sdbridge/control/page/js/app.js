// The page's beginning: load the table, build every section, connect.

import { memory, say } from "./dom.js";
import { link } from "./link.js";
import { loadTable, status, followStatus } from "./state.js";
import { buildConnect } from "./connect.js";
import { buildControls } from "./groups.js";
import { buildCues } from "./cues.js";
import { buildKeys } from "./keys.js";
import { buildNotices } from "./notices.js";
import { buildPresets } from "./presets.js";
import { buildPrompt } from "./prompt.js";
import { buildStage } from "./stage.js";
import { buildStrip } from "./strip.js";
import { buildWatch } from "./watch.js";

function showView(view) {
  document.body.dataset.view = view;
  memory.set("view", view);
  for (const tab of document.querySelectorAll("#tabs button")) {
    tab.toggleAttribute("aria-current", tab.dataset.view === view);
  }
  scrollTo(0, 0);
  document.dispatchEvent(new CustomEvent("view", { detail: view }));
}

/** Columns and the phone's picture stand right below the strip, whatever it and the notices take. */
function measure() {
  const top = document.querySelector(".top");
  const notices = document.getElementById("notices");
  const put = () => {
    document.body.style.setProperty("--top", `${top.offsetHeight}px`);
    document.body.style.setProperty("--above", `${top.offsetHeight + notices.offsetHeight}px`);
  };
  const observer = new ResizeObserver(put);
  observer.observe(top);
  observer.observe(notices);
}

async function begin() {
  measure();
  for (const tab of document.querySelectorAll("#tabs button")) {
    tab.addEventListener("click", () => showView(tab.dataset.view));
  }
  buildStrip();
  buildNotices();
  let schema = "";
  while (!schema) {
    try {
      schema = await loadTable();
    } catch {
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
  buildStage();
  buildPrompt();
  buildControls();
  buildPresets();
  buildCues();
  buildConnect();
  buildWatch();
  buildKeys();
  link.addEventListener("hello", ({ detail }) => {
    if (detail.schema !== schema) location.reload(); // another version of the bridge came up
    say(document.getElementById("name"), detail.name);
    document.title = detail.name;
  });
  link.connect();
  showView(memory.get("view", "play"));
  followStatus(() => document.body.classList.toggle("safe-mode", Boolean(status.safe_mode)));
}

begin();
