// The view Connect: what comes in, what goes out, which model, and how others reach the bridge.

import { copy, el, fill, icon, toast } from "./dom.js";
import { link } from "./link.js";
import { followStatus, status } from "./state.js";
import { buildMidi } from "./midi.js";
import { buildModels } from "./models.js";

const ROLES = {
  main: "The picture that is repainted.",
  control: "Not in use. A second input for ControlNets.",
  mask: "Not in use. White is repainted, black is kept.",
  style: "Not in use. A style image, live.",
};

export function buildConnect() {
  const inputs = el("section.card");
  const outputs = el("section.card");
  const models = el("section.card");
  const midi = el("section.card");
  const others = el("section.card");
  fill(document.getElementById("connect"), inputs, outputs, models, midi, others);
  buildModels(models);
  buildMidi(midi);
  let built = false;
  const load = async () => {
    if (built) return;
    built = true;
    try {
      await buildInputs(inputs);
      await buildOutputs(outputs);
    } catch (error) {
      built = false;
      fill(inputs, el("p.empty", {}, error.message));
    }
  };
  document.addEventListener("view", ({ detail }) => {
    if (detail !== "connect") return;
    load();
    drawOthers(others);
  });
}

async function buildInputs(card) {
  const { backends } = await link.get("/api/sources");
  const rows = Object.entries(ROLES).map(([role, what]) => input(role, what, backends));
  fill(card, el("div.card-head", {}, el("h2", {}, "Inputs")), rows);
}

/** One input: which backend, which source, and what is coming now. */
function input(role, what, backends) {
  const list = el("datalist", { id: `sources-${role}` });
  const backend = backendSelect(backends, `Backend of the ${role} input`);
  const name = el("input", { type: "text", list: list.id, "aria-label": `Source of the ${role} input`, placeholder: "any source", autocomplete: "off", spellcheck: "false" });
  const state = el("p.texture-state");
  const see = async () => {
    try {
      const { sources } = await link.get(`/api/sources?backend=${encodeURIComponent(backend.value)}`);
      fill(list, sources.map((source) => el("option", { value: source.name }, source.detail)));
      name.placeholder = sources.length ? `${sources.length} seen: ${sources[0].name}` : "nothing seen yet; a name may be typed";
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const use = (event) => {
    event.preventDefault();
    choose("/api/sources", { role, backend: backend.value, name: name.value });
  };
  backend.addEventListener("change", see);
  name.addEventListener("focus", see);
  preset(backend, name, () => status.inputs?.find((one) => one.role === role));
  const off = el("button.quiet", { type: "button", hidden: true, "aria-label": `Switch the ${role} input off`, onclick: () => choose("/api/sources/off", { role }, "Switched off") }, "Off");
  followStatus((now) => {
    const texture = now.inputs?.find((one) => one.role === role);
    off.hidden = role === "main" || !texture;
    drawState(state, texture, what);
  });
  return el("form.texture", { onsubmit: use }, el("h3", {}, role), el("div.texture-fields", {}, backend, name, list, el("button", { type: "submit" }, "Use"), off), state);
}

const following = []; // of the rows of outputs, which are drawn anew when there is one more or less

async function buildOutputs(card) {
  const { outputs, backends } = await link.get("/api/outputs");
  for (const end of following.splice(0)) end();
  // Whoever added or ended one: rows are known by their place, which then is another's.
  following.push(followStatus((now) => {
    if (now.outputs && now.outputs.length !== outputs.length) buildOutputs(card).catch(() => {}); // the next status asks again
  }));
  const rows = outputs.map((output, index) => {
    const backend = backendSelect(backends, `Backend of output ${index + 1}`);
    const name = el("input", { type: "text", value: output.name, "aria-label": `Name of output ${index + 1}`, autocomplete: "off", spellcheck: "false" });
    backend.value = output.backend;
    const state = el("p.texture-state");
    const use = (event) => {
      event.preventDefault();
      choose("/api/outputs", { index, backend: backend.value, name: name.value });
    };
    const end = () => choose("/api/outputs/off", { index }, "Ended");
    following.push(followStatus((now) => drawState(state, now.outputs?.[index], "")));
    return el(
      "form.texture", { onsubmit: use },
      el("h3", {}, output.role),
      el("div.texture-fields", {}, backend, name, el("button", { type: "submit" }, "Send"), el("button.quiet", { type: "button", "aria-label": `End output ${index + 1}`, onclick: end }, "End")),
      state,
    );
  });
  fill(card, el("div.card-head", {}, el("h2", {}, "Outputs")), rows.length ? rows : el("p.empty", {}, "There is no output."), anotherOutput(outputs, backends));
}

/** A further output: the picture once more under another name, or a ControlNet's control image. */
function anotherOutput(outputs, backends) {
  const backend = backendSelect(backends, "Backend of the new output");
  const role = el("select", { "aria-label": "Picture of the new output" }, el("option", { value: "generated" }, "generated"), el("option", { value: "control" }, "control"));
  const name = el("input", { type: "text", "aria-label": "Name of the new output", placeholder: "name", required: true, autocomplete: "off", spellcheck: "false" });
  const add = (event) => {
    event.preventDefault();
    choose("/api/outputs", { index: outputs.length, backend: backend.value, name: name.value, role: role.value }, "Added");
  };
  return el("form.texture", { onsubmit: add }, el("h3", {}, "One more"), el("div.texture-fields.four", {}, backend, role, name, el("button", { type: "submit" }, "Add")));
}

function backendSelect(backends, label) {
  const options = [{ name: "auto", available: true, reason: "the best there is here" }, ...backends.filter((one) => one.name !== "auto")];
  return el(
    "select", { "aria-label": label },
    options.map((one) => el("option", { value: one.name, disabled: !one.available, title: one.reason }, one.available ? one.name : `${one.name} (${one.reason})`)),
  );
}

/** Show what is in use now, once it is known. */
function preset(backend, name, find) {
  const end = followStatus(() => {
    const now = find();
    if (now) {
      backend.value = now.backend;
      if (document.activeElement !== name) name.value = now.name;
    }
    end();
  });
}

function drawState(node, texture, otherwise) {
  node.classList.toggle("connected", Boolean(texture?.connected));
  const size = texture?.width ? ` · ${texture.width}×${texture.height}` : "";
  const rate = texture?.fps ? ` · ${texture.fps.toFixed(1)} fps` : "";
  const text = texture ? texture.line + size + rate : otherwise;
  if (node.textContent !== text) node.textContent = text;
}

async function choose(path, body, done = "Switched") {
  try {
    await link.post(path, body);
    toast(done);
  } catch (error) {
    toast(error.message, "bad");
  }
}

async function drawOthers(card) {
  const place = location.host;
  const { paths } = await link.get("/api/outputs").catch(() => ({ paths: [] }));
  const links = link.lan && link.mayWrite ? (await link.get("/api/links").catch(() => ({ links: [] }))).links : [];
  fill(
    card,
    el("div.card-head", {}, el("h2", {}, "How others reach the bridge")),
    line("OSC (UDP)", `${location.hostname}:${location.port || 80}`),
    line("OSCQuery", `http://${place}/?HOST_INFO`),
    line("HTTP API", `http://${place}/api/openapi.json`),
    paths.map((path) => line(path.endsWith("mjpeg") ? "MJPEG, for OBS" : "Output", `http://${place}${path}`)),
    el("p.small", {}, link.lan
      ? "Open to the network. Writing over HTTP needs the access token; OSC and NDI carry no authentication, so use a network you trust."
      : "Only this machine reaches the page and OSC. To open them to phones, start with --lan; OSC and NDI themselves carry no authentication."),
    links.map(phone),
  );
}

function line(label, text) {
  const button = el("button.address-line", { type: "button", title: "Copy", onclick: () => copy(text) }, el("code", {}, text), icon("copy"));
  return el("div.place", {}, el("span", {}, label), button);
}

/** A link that opens this page, allowed to write, on whoever points a camera at it. */
function phone({ url, qr }) {
  const picture = el("img.qr", { src: qr, alt: `QR code of the link for ${new URL(url).host}` });
  return el("details.fold", {}, el("summary", {}, `Open on a phone by ${new URL(url).host}`), picture, line("Link with token", url));
}
