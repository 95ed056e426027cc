// <sound-player peaks="0 40 97 ..." seconds="4.2"><audio src="..." controls></audio></sound-player>: a waveform to seek
// in, with Play and Loop, around the browser's own player, which is seen where this does not run.
//
// Gradio changes a page's HTML node by node, and takes away every attribute and child that it has not sent. All that
// changes while a sound plays is therefore in the shadow tree, which it does not know.
customElements.get("sound-player") ?? customElements.define("sound-player", class SoundPlayer extends HTMLElement {
  static observedAttributes = ["peaks", "seconds"];

  static CONTENT = `
    <style>
      :host { display: block; box-sizing: border-box; }
      .wave { position: relative; height: 112px; }
      svg { position: absolute; inset: 0; width: 100%; height: 100%; fill: none; stroke-width: 0.6; }
      .all { stroke: color-mix(in srgb, var(--faint) 65%, transparent); }
      .played { stroke: var(--accent); clip-path: inset(0 calc(100% - var(--played, 0%)) 0 0); }
      .wave::after {
        content: "";
        position: absolute;
        inset-block: 0;
        left: var(--played, 0%);
        width: 2px;
        margin-left: -1px;
        border-radius: 1px;
        background: var(--accent);
        pointer-events: none;
      }
      input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; background: none; appearance: none; cursor: pointer; }
      input::-webkit-slider-runnable-track { height: 100%; background: none; }
      input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; background: none; }
      input::-moz-range-track { height: 100%; background: none; }
      input::-moz-range-thumb { width: 1px; height: 100%; border: 0; background: none; }
      .deck { display: flex; align-items: center; gap: 14px; margin-top: 14px; }
      button { font: inherit; font-size: 15px; font-weight: 600; cursor: pointer; }
      .play { display: grid; place-items: center; flex: none; width: 46px; height: 46px; padding: 0; border: 0; border-radius: 23px; background: var(--accent); color: var(--on-accent); }
      .play:hover { filter: brightness(1.1); }
      .play svg { position: static; width: 22px; height: 22px; fill: currentColor; }
      .time { color: var(--faint); font-size: 16px; font-variant-numeric: tabular-nums; }
      .loop { min-height: 36px; margin-inline-start: auto; padding: 0 16px; border: 1px solid var(--line); border-radius: 18px; background: none; color: var(--ink); }
      .loop:hover { border-color: var(--accent); color: var(--accent); }
      .loop[aria-pressed="true"] { background: var(--accent); border-color: var(--accent); color: var(--on-accent); }
      :focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 6px; }
      .play:focus-visible, .loop:focus-visible { border-radius: 23px; }
    </style>
    <div class="wave">
      <svg class="all" preserveAspectRatio="none" aria-hidden="true"><path/></svg>
      <svg class="played" preserveAspectRatio="none" aria-hidden="true"><path/></svg>
      <input type="range" min="0" max="100" step="any" value="0" aria-label="Position">
    </div>
    <div class="deck">
      <button type="button" class="play"><svg viewBox="0 0 24 24" aria-hidden="true"><path/></svg></button>
      <span class="time"></span>
      <button type="button" class="loop" aria-pressed="false">Loop</button>
    </div>`;

  static ICONS = { Play: "M8 4.5v15l12-7.5z", Pause: "M6 5h4.2v14H6zM13.8 5H18v14h-4.2z" };

  static clock(seconds) {
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }

  #wave;
  #slider;
  #play;
  #time;
  #loop;
  #looping = false;
  #frame = 0;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor() {
    super();
    this.attachShadow({ mode: "open" }).innerHTML = SoundPlayer.CONTENT;
    const part = (name) => this.shadowRoot.querySelector(name);
    [this.#wave, this.#slider, this.#play] = [".wave", "input", ".play"].map(part);
    [this.#time, this.#loop] = [".time", ".loop"].map(part);
    this.#slider.addEventListener("input", () => this.#seek());
    this.#play.addEventListener("click", () => this.#toggle());
    this.#loop.addEventListener("click", () => {
      this.#looping = !this.#looping;
      this.#show();
    });
    // Media events do not bubble, but they come past here on their way down.
    for (const name of ["loadedmetadata", "timeupdate", "seeked", "play", "pause", "ended", "emptied", "error"]) {
      this.addEventListener(name, () => this.#show(), true);
    }
    this.addEventListener("play", () => this.#hush(), true);
    new MutationObserver(() => this.#show()).observe(this, { subtree: true, childList: true, attributes: true });
  }

  attributeChangedCallback() {
    const peaks = (this.getAttribute("peaks") ?? "").split(" ").filter(Boolean).map(Number);
    // Silence is a row of dots.
    const bars = peaks.map((peak, column) => `M${column + 0.5} ${50 - Math.max(peak, 2) / 2}v${Math.max(peak, 2)}`);
    for (const drawing of this.#wave.querySelectorAll("svg")) {
      drawing.setAttribute("viewBox", `0 0 ${peaks.length || 1} 100`);
      drawing.firstChild.setAttribute("d", bars.join(""));
    }
    this.#show();
  }

  get #audio() {
    return this.querySelector("audio");
  }

  get #seconds() {
    return this.#audio.duration || Number(this.getAttribute("seconds"));
  }

  #toggle() {
    const audio = this.#audio;
    if (audio.paused) audio.play().catch(() => this.#show());
    else audio.pause();
  }

  #seek() {
    this.#audio.currentTime = (this.#seconds * this.#slider.value) / 100;
    this.#show();
  }

  // One sound at a time.
  #hush() {
    for (const other of document.querySelectorAll("sound-player audio")) if (other !== this.#audio) other.pause();
  }

  #show() {
    const audio = this.#audio;
    if (!audio) return;
    if (audio.loop !== this.#looping) audio.loop = this.#looping;
    const action = audio.paused ? "Play" : "Pause";
    this.#play.setAttribute("aria-label", action);
    this.#play.querySelector("path").setAttribute("d", SoundPlayer.ICONS[action]);
    this.#loop.setAttribute("aria-pressed", this.#looping);
    const [now, total] = [audio.currentTime, this.#seconds];
    const { clock } = SoundPlayer;
    const end = clock(Math.max(Math.round(total), 1));
    const at = now >= total ? end : clock(Math.floor(now));
    this.#time.textContent = audio.error ? "This cannot be played." : `${at} / ${end}`;
    this.#slider.value = total ? (100 * now) / total : 0;
    this.#slider.setAttribute("aria-valuetext", `${at} of ${end}`);
    this.#paint();
  }

  // How far it has played: with every frame, or a few times a second for who wants things to be still.
  #paint() {
    cancelAnimationFrame(this.#frame);
    const audio = this.#audio;
    if (!audio) return;
    const share = Math.min(audio.currentTime / (this.#seconds || 1), 1);
    this.#wave.style.setProperty("--played", `${100 * share}%`);
    if (!audio.paused && !this.#calm.matches) this.#frame = requestAnimationFrame(() => this.#paint());
  }
});
