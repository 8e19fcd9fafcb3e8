"use strict";
document.documentElement.classList.add("js");

// One sound at a time; a button plays its clip, shows how far it is, and stops it.
let playing = null;
const buttonsOf = (id) => document.querySelectorAll(`.play[data-clip="${id}"]`);
const mark = (id, on, part) => buttonsOf(id).forEach((button) => {
  button.classList.toggle("on", on);
  button.style.setProperty("--part", String(part));
});
document.querySelectorAll(".play").forEach((button) => button.addEventListener("click", () => {
  const id = button.dataset.clip;
  const sound = document.getElementById(`clip-${id}`);
  if (playing && playing !== sound) playing.pause();
  if (!sound.paused) { sound.pause(); return; }
  sound.currentTime = 0;
  playing = sound;
  sound.play().catch(() => { button.title = "this browser cannot play Ogg Vorbis"; button.classList.add("broken"); });
}));
document.querySelectorAll(".store audio").forEach((sound) => {
  const id = sound.id.slice(5);
  sound.addEventListener("play", () => mark(id, true, 0));
  sound.addEventListener("timeupdate", () => mark(id, !sound.paused, sound.currentTime / (sound.duration || 1)));
  for (const name of ["pause", "ended"]) sound.addEventListener(name, () => mark(id, false, 0));
});

// Filters of long tables.
document.querySelectorAll("input.search").forEach((input) => {
  const rows = [...input.parentElement.querySelectorAll("tbody tr")];
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
});

// Where the reader is.
const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((link) => link.removeAttribute("aria-current"));
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
document.querySelectorAll("section.part").forEach((section) => watcher.observe(section));

// On a narrow screen the contents are folded until asked for.
const contents = document.querySelector(".contents details");
const narrow = window.matchMedia("(max-width: 60rem)");
const fold = () => { if (contents) contents.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
