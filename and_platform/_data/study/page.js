"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study-data").textContent);
  const CODE = /^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$/;
  const $ = (id) => document.getElementById(id);
  const main = $("main");

  // ------------------------------------------------------------------ what is kept

  // Some browsers refuse storage to pages opened from a folder: then nothing but the saved file lasts.
  const storage = (() => {
    try {
      localStorage.setItem("study probe", "1");
      localStorage.removeItem("study probe");
      return localStorage;
    } catch {
      return null;
    }
  })();
  const keyOf = (rater) => `study ${study.study} rater ${rater}`;
  const LAST = `study ${study.study} last rater`;
  const OPEN = `study ${study.study} open`;

  let rater = "";
  let kept = {}; // item -> {draft, summary, ratings: {slot: 1…5}, heard: [clip]}
  let place = 0; // index into study.items; study.items.length is the last page
  let unsaved = false;

  const stored = (name) => {
    try {
      return JSON.parse(storage?.getItem(keyOf(name)) ?? "null");
    } catch {
      return null;
    }
  };
  const keep = () => {
    try {
      storage?.setItem(keyOf(rater), JSON.stringify({ answers: kept, place, unsaved }));
      storage?.setItem(LAST, rater);
    } catch {
      tell("This browser cannot keep more answers: save a file now.", true);
    }
  };
  const changed = () => {
    unsaved = true;
    keep();
  };
  const of = (item) => (kept[item.item] ??= { draft: "", summary: null, ratings: {}, heard: [] });
  const written = (item) => kept[item.item]?.summary != null;
  const rated = (item) => Object.keys(kept[item.item]?.ratings ?? {}).length;
  const complete = (item) => written(item) && rated(item) === item.descriptions.length;
  const begun = (item) => written(item) || rated(item) > 0 || Boolean(kept[item.item]?.draft.trim());
  const nComplete = () => study.items.filter(complete).length;

  // ------------------------------------------------------------------ small helpers

  const el = (tag, properties = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === false || value == null) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
  };
  const button = (text, onclick, properties = {}) => el("button", { type: "button", class: "button", onclick, ...properties }, text);
  const heading = (n, text) => el("h2", {}, el("span", { class: "step" }, String(n)), text);
  const tell = (text, bad = false) => {
    $("status").textContent = text;
    $("status").classList.toggle("bad", bad);
  };
  const show = (...children) => {
    stopAll();
    tell("");
    main.replaceChildren(...children.filter((child) => child != null));
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
    refresh();
  };
  const refresh = () => {
    const n = study.items.length;
    const done = nComplete();
    $("bar-count").textContent = `${done} of ${n} done`;
    $("meter").setAttribute("aria-valuemax", n);
    $("meter").setAttribute("aria-valuenow", done);
    $("meter-fill").style.width = `${(100 * done) / n}%`;
    for (const node of document.querySelectorAll(".overview button")) {
      const item = study.items[Number(node.dataset.place)];
      const state = complete(item) ? "done" : begun(item) ? "begun" : "";
      node.className = state;
      node.setAttribute("aria-label", `Group ${item.item}, ${state || "not begun"}`);
    }
  };

  // ------------------------------------------------------------------ sound

  const PLAY = "M3 1.5v15l13-7.5z";
  const STOP = "M3 3h12v12H3z";
  let players = [];
  let queue = [];

  const stopAll = () => {
    queue = [];
    for (const player of players) {
      player.audio.pause();
      player.audio.currentTime = 0;
    }
  };
  const playNext = () => {
    const next = queue.shift();
    if (next) next.play();
  };
  const playAll = () => {
    if (players.some((player) => !player.audio.paused)) return stopAll();
    queue = players.filter((player) => !player.broken);
    playNext();
  };

  const clip = (file, number, item, onheard) => {
    const audio = el("audio", { src: file, preload: "auto" });
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", PLAY);
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 18 18");
    icon.setAttribute("class", "icon");
    icon.setAttribute("aria-hidden", "true");
    icon.append(path);
    const info = el("span", { class: "info" }, "…");
    const fill = el("span", { class: "fill" });
    const node = el(
      "button", { type: "button", class: "clip" },
      icon, el("span", {}, el("span", { class: "name" }, `Clip ${number}`), info), fill, audio,
    );
    const player = {
      audio, node, broken: false,
      play() {
        for (const other of players) if (other !== player) other.audio.pause();
        audio.currentTime = 0;
        audio.play().catch(() => {});
      },
    };
    const heard = () => of(item).heard.includes(number);
    const label = () => {
      const playing = !audio.paused && !audio.ended;
      node.classList.toggle("playing", playing);
      node.classList.toggle("heard", heard());
      node.classList.toggle("broken", player.broken);
      path.setAttribute("d", playing ? STOP : PLAY);
      node.setAttribute("aria-label", `${playing ? "Stop" : "Play"} clip ${number}${heard() ? ", heard" : ""}`);
      if (player.broken) info.textContent = "cannot be played";
      else if (Number.isFinite(audio.duration)) info.textContent = `${audio.duration.toFixed(1)} s${heard() ? " ✓" : ""}`;
      if (!playing) fill.style.width = 0;
    };
    const draw = () => {
      if (audio.paused) return;
      fill.style.width = `${(100 * audio.currentTime) / audio.duration}%`;
      requestAnimationFrame(draw);
    };
    node.addEventListener("click", () => {
      const playing = !audio.paused;
      stopAll();
      if (!playing) player.play();
    });
    audio.addEventListener("play", () => (label(), draw()));
    audio.addEventListener("pause", label);
    audio.addEventListener("loadedmetadata", label);
    audio.addEventListener("ended", () => {
      if (!heard()) {
        of(item).heard.push(number);
        keep();
      }
      label();
      onheard();
      playNext();
    });
    audio.addEventListener("error", () => {
      player.broken = true;
      label();
      tell("A clip cannot be played. Keep the folder “audio” beside this page; if it is there, try another browser.", true);
    });
    label();
    return player;
  };

  // ------------------------------------------------------------------ first page

  const start = () => {
    $("bar-progress").hidden = $("save").hidden = true;
    $("bar-title").textContent = "Listening study";
    const error = el("p", { class: "error", id: "code-error", role: "alert" });
    const code = el("input", {
      type: "text", id: "code", autocomplete: "off", autocapitalize: "off", spellcheck: "false", maxlength: "32",
      "aria-describedby": "code-hint code-error",
    });
    const there = el("p", { class: "small-text", id: "code-there" });
    const look = () => {
      const found = CODE.test(code.value.trim()) ? stored(code.value.trim()) : null;
      const n = found ? study.items.filter((item) => found.answers?.[item.item]?.summary != null).length : 0;
      there.textContent = n ? `Answers with this code are kept in this browser (${n} of ${study.items.length} groups begun): you go on with them.` : "";
    };
    code.addEventListener("input", look);
    try {
      code.value = storage?.getItem(LAST) ?? "";
    } catch {
      code.value = "";
    }
    look();
    const begin = (event) => {
      event.preventDefault();
      const name = code.value.trim();
      if (!CODE.test(name)) {
        error.textContent = "Enter your code: letters, digits, ‘.’, ‘_’ and ‘-’, without spaces.";
        code.setAttribute("aria-invalid", "true");
        code.focus();
        return;
      }
      open(name);
    };
    const most = Math.max(...study.items.map((item) => item.clips.length));
    const file = el("input", { type: "file", id: "earlier", accept: ".json,application/json", onchange: (event) => load(event.target.files[0], error) });
    show(
      el("h1", {}, "What do these sounds have in common?"),
      el("p", { class: "quiet" }, `${study.name} · ${study.items.length} groups of up to ${most} short clips`),
      storage ? null : el("p", { class: "warning" }, "This browser keeps nothing for pages opened from a folder. Save your answers to a file before you close the page."),
      el("div", { class: "card" },
        el("p", {}, "Put on headphones. For each group:"),
        el("ol", { class: "todo" },
          el("li", {}, "Play every clip."),
          el("li", {}, "Write in your own words what most of them have in common. If you hear nothing that they share, write just that."),
          el("li", {}, "Then look at the descriptions and rate how well each fits most of the clips. Your text cannot be changed any more; ratings can."),
        ),
        el("p", { class: "quiet small-text" }, "Nothing is sent anywhere. At the end the page saves a file, which you send to whoever asked you. You may skip groups, stop, and go on later."),
      ),
      el("form", { class: "card", onsubmit: begin, novalidate: true },
        el("label", { class: "field", for: "code" }, "Your code"),
        code,
        el("p", { class: "quiet small-text", id: "code-hint" }, "The one you were given; not your name."),
        there, error,
        el("div", { class: "row" }, el("button", { type: "submit", class: "button", id: "begin" }, "Begin")),
      ),
      el("details", {},
        el("summary", {}, "Continue from a file"),
        el("div", { class: "file" }, el("label", { class: "field", for: "earlier" }, "A file that this page has saved before"), file),
      ),
    );
  };

  const open = (name) => {
    rater = name;
    const found = stored(name);
    kept = found?.answers ?? {};
    place = Math.min(found?.place ?? 0, study.items.length);
    unsaved = found?.unsaved ?? false;
    keep();
    try {
      sessionStorage.setItem(OPEN, name);
    } catch {
      // A reload then leads to the first page.
    }
    go(place);
  };

  const load = async (file, error) => {
    if (!file) return;
    let told;
    try {
      told = JSON.parse(await file.text());
    } catch {
      told = null;
    }
    const mine = told?.format === study.format && told.version === study.version && told.study === study.study && CODE.test(told.rater) && Array.isArray(told.answers);
    if (!mine) {
      error.textContent = "That file holds no answers to this study.";
      return;
    }
    const before = stored(told.rater);
    if (before?.unsaved && !confirm(`This browser keeps answers of ${told.rater} that are in no file yet. Put those of the file in their place?`)) return;
    const known = new Map(study.items.map((item) => [item.item, item]));
    kept = {};
    for (const answer of told.answers) {
      const item = known.get(answer.item);
      if (!item) continue;
      const slots = new Set(item.descriptions.map((one) => one.slot));
      const ratings = Object.entries(answer.ratings ?? {}).filter(([slot, value]) => slots.has(slot) && study.steps.some((step) => step.value === value));
      kept[item.item] = { draft: answer.summary ?? "", summary: answer.summary || null, ratings: Object.fromEntries(ratings), heard: [] };
    }
    rater = told.rater;
    place = Math.max(0, study.items.findIndex((item) => !complete(item)));
    unsaved = false;
    keep();
    open(rater);
  };

  // ------------------------------------------------------------------ a group

  const go = (to) => {
    place = to;
    keep();
    $("bar-progress").hidden = $("save").hidden = false;
    $("bar-title").textContent = study.name;
    if (place < study.items.length) group(study.items[place]);
    else end();
  };

  const group = (item) => {
    const hint = el("p", { class: "quiet small-text", id: "heard-hint" });
    const missing = () => {
      const left = item.clips.map((_, i) => i + 1).filter((n) => !of(item).heard.includes(n));
      hint.textContent = left.length ? `Not heard to the end yet: ${left.length === item.clips.length ? "any of the clips" : `clip ${left.join(", ")}`}.` : "";
    };
    players = item.clips.map((file, i) => clip(file, i + 1, item, missing));
    missing();
    const listen = el("section", { class: "card" },
      el("div", { class: "row", style: "justify-content: space-between" },
        heading(1, "Listen"), button("Play all", playAll, { class: "button plain small", id: "play-all" })),
      el("ul", { class: "clips" }, ...players.map((player) => el("li", {}, player.node))),
    );
    const rest = el("div");
    const fillIn = () => rest.replaceChildren(...(written(item) ? [mine(item), judge(item)] : [write(item, hint, fillIn)]));
    fillIn();
    show(
      el("h1", {}, `Group ${item.item} of ${study.items.length}`),
      listen, rest,
      el("nav", { class: "moves", "aria-label": "Groups" },
        button("Back", () => (place ? go(place - 1) : start()), { class: "button plain", id: "back" }),
        button(place + 1 < study.items.length ? "Next group" : "Finish", () => go(place + 1), { id: "next" })),
      overview(),
      el("p", { class: "quiet small-text" }, "Keys: ", el("kbd", {}, "P"), " play all or stop · ", el("kbd", {}, "1"), " to ", el("kbd", {}, "5"), " rate · ",
        el("kbd", {}, "N"), " next · ", el("kbd", {}, "B"), " back"),
    );
  };

  const write = (item, hint, reveal) => {
    const error = el("p", { class: "error", id: "text-error", role: "alert" });
    const text = el("textarea", {
      id: "text", rows: "4", maxlength: "4000", "aria-describedby": "text-hint text-error heard-hint",
      oninput: () => {
        of(item).draft = text.value;
        error.textContent = "";
        text.removeAttribute("aria-invalid");
        keep();
        refresh();
      },
    });
    text.value = of(item).draft;
    const done = () => {
      if (text.value.trim().length < 3) {
        error.textContent = "Write what the clips have in common first; “nothing in common” is an answer too.";
        text.setAttribute("aria-invalid", "true");
        text.focus();
        return;
      }
      of(item).summary = text.value.trim();
      changed();
      reveal();
      refresh();
      document.getElementById("judge")?.focus({ preventScroll: true });
      document.getElementById("judge")?.scrollIntoView({ behavior: "smooth", block: "start" });
    };
    return el("section", { class: "card" },
      heading(2, "Write"),
      el("label", { class: "field", for: "text" }, "What do most of these clips have in common?"),
      text,
      el("p", { class: "quiet small-text", id: "text-hint" }, "One or a few sentences. It cannot be changed after the descriptions are shown."),
      error, hint,
      button("Show the descriptions", done, { id: "reveal" }),
    );
  };

  const mine = (item) =>
    el("section", { class: "card" }, heading(2, "You wrote"), el("blockquote", { class: "mine" }, of(item).summary));

  const judge = (item) =>
    el("section", { class: "card", id: "judge", tabindex: "-1", "aria-label": "Rate the descriptions" },
      heading(3, "Rate"),
      el("p", { class: "question", id: "question" }, study.question),
      ...item.descriptions.map((one) => description(item, one)),
    );

  const description = (item, one) => {
    const name = `rating-${item.item}-${one.slot}`;
    const box = el("fieldset", { class: "description", "data-slot": one.slot, "aria-describedby": `question said-${one.slot}` },
      el("legend", {}, `Description ${one.slot}`),
      el("div", { class: "said", id: `said-${one.slot}` }, ...one.text.split("\n").filter((line) => line.trim()).map((line) => el("p", {}, line))),
      el("div", { class: "scale" }, ...study.steps.map((step) => {
        const radio = el("input", { type: "radio", name, value: step.value, onchange: () => rate(item, one.slot, step.value) });
        radio.checked = of(item).ratings[one.slot] === step.value;
        return el("label", {}, radio, el("span", { class: "choice" }, el("b", {}, String(step.value)), el("span", {}, step.name)));
      })),
      el("div", { class: "ends", "aria-hidden": "true" }, el("span", {}, `1 ${study.steps[0].name}`), el("span", {}, `${study.steps.at(-1).name} 5`)),
    );
    box.classList.toggle("rated", one.slot in of(item).ratings);
    return box;
  };

  const rate = (item, slot, value) => {
    of(item).ratings[slot] = value;
    document.querySelector(`fieldset[data-slot="${slot}"]`).classList.add("rated");
    changed();
    refresh();
  };

  const overview = () =>
    el("details", { id: "overview" },
      el("summary", {}, "All groups"),
      el("ul", { class: "overview" }, ...study.items.map((item, i) =>
        el("li", {}, el("button", { type: "button", "data-place": i, "aria-current": i === place && "page", onclick: () => go(i) }, String(item.item))))),
    );

  // ------------------------------------------------------------------ last page and saving

  const fileName = () => `answers-${study.name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[.-]+/, "") || "study"}-${rater}.json`;

  const end = () => {
    players = [];
    const left = study.items.filter((item) => !complete(item));
    show(
      el("h1", {}, left.length ? "Nearly there" : "All done, thank you"),
      el("div", { class: "card" },
        left.length
          ? el("p", {}, `${study.items.length - left.length} of ${study.items.length} groups are complete. You may save what you have, or go on: choose a group below.`)
          : el("p", {}, `All ${study.items.length} groups are complete.`),
        el("p", {}, "Save your answers and send the file ", el("b", {}, fileName()), " to whoever asked you. It is in the folder of your downloads."),
        el("div", { class: "row" }, button("Save answers", save, { id: "save-last" }), button("Back", () => go(study.items.length - 1), { class: "button plain", id: "back" })),
      ),
      overview(),
    );
    $("overview").open = left.length > 0;
  };

  const save = () => {
    const answers = study.items
      .filter((item) => written(item) || rated(item))
      .map((item) => ({ item: item.item, summary: of(item).summary ?? "", ratings: { ...of(item).ratings } }));
    if (!answers.length) {
      tell("There is nothing to save yet.", true);
      return;
    }
    const content = { format: study.format, version: study.version, study: study.study, name: study.name, rater, saved_at: new Date().toISOString(), answers };
    const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    const link = el("a", { href: url, download: fileName() });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    unsaved = false;
    keep();
    const done = nComplete();
    tell(`Saved as ${fileName()}, in your downloads: ${done} of ${study.items.length} groups complete.`);
  };

  // ------------------------------------------------------------------ keys

  const rateByKey = (value) => {
    const item = study.items[place];
    const boxes = [...document.querySelectorAll("fieldset.description")];
    const box = document.activeElement?.closest("fieldset.description") ?? boxes.find((one) => !one.classList.contains("rated"));
    const radio = box?.querySelector(`input[value="${value}"]`);
    if (!radio) return;
    radio.checked = true;
    rate(item, box.dataset.slot, value);
    const next = boxes.find((one) => !one.classList.contains("rated"));
    (next ? next.querySelector("input") : $("next")).focus();
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, input:not([type=radio])")) return;
    if (!rater || !$("next")) return;
    const key = event.key.toLowerCase();
    if (key === "p") playAll();
    else if (key === "n") $("next").click();
    else if (key === "b") $("back").click();
    else if (study.steps.some((step) => String(step.value) === key)) rateByKey(Number(key));
    else return;
    event.preventDefault();
  });
  window.addEventListener("beforeunload", (event) => {
    if (unsaved && !storage) event.preventDefault();
  });
  $("save").addEventListener("click", save);

  let again = null;
  try {
    again = sessionStorage.getItem(OPEN);
  } catch {
    again = null;
  }
  if (again && CODE.test(again) && stored(again)) open(again);
  else start();
})();
