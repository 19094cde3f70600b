"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const { items, texts } = page;
  const n = items.length;
  const slot = "nafld-turing:" + page.set_id;
  const $ = (id) => document.getElementById(id);
  const screens = ["welcome", "how", "item", "finish", "done", "elsewhere"];
  const say = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
  const now = () => new Date().toISOString().slice(0, 19) + "Z";

  let state = null; // the sitting
  let practising = false;
  let shownAt = null; // when the image on the screen was last uncovered; null while it is not seen
  let closed = false; // another window has taken over

  // ---------------------------------------------------------------- what the browser keeps
  const storage = (() => {
    try {
      localStorage.setItem(slot + ":probe", "1");
      localStorage.removeItem(slot + ":probe");
      return localStorage;
    } catch {
      return null; // private windows, sandboxed previews
    }
  })();

  function keep() {
    if (!storage || closed || !state) return;
    try {
      storage.setItem(slot, JSON.stringify(state));
    } catch {
      $("no-storage").textContent = texts.no_storage;
    }
  }

  function kept() {
    try {
      const found = JSON.parse(storage.getItem(slot));
      const whole = found && found.set_id === page.set_id && Array.isArray(found.answers) && found.answers.length === n;
      return whole && Number.isInteger(found.at) && found.at >= 0 && found.at <= n ? found : null;
    } catch {
      return null;
    }
  }

  function forget() {
    state = null;
    if (storage) storage.removeItem(slot);
  }

  function begin(rater) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    state = {
      set_id: page.set_id,
      rater,
      sitting: Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""),
      started: now(),
      finished: null,
      at: 0, // image on the screen; n is the page after the last one
      reached: 0, // furthest image seen
      practised: false,
      answers: items.map(() => ({ answer: null, confidence: null, ms: 0, visits: 0 })),
    };
    keep();
  }

  // ---------------------------------------------------------------- screens
  function show(name) {
    for (const other of screens) $(other).hidden = other !== name;
    window.scrollTo(0, 0);
    $(name + "-h").focus({ preventScroll: true });
  }

  function goOn() {
    if (state.finished) return showDone();
    if (!state.practised) return show("how");
    return state.at === n ? showFinish() : showItem();
  }

  function showWelcome() {
    state = kept();
    $("resume-box").hidden = !state;
    $("enter").hidden = Boolean(state);
    if (state) {
      const done = state.answers.filter((answer) => answer.answer).length;
      $("resume-what").textContent = say(texts.resume_what, { rater: state.rater, done, n });
    }
    show("welcome");
  }

  function choose(name, value) {
    for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.checked = input.value === String(value);
  }

  const chosen = (name) => (document.querySelector(`input[name="${name}"]:checked`) || { value: "" }).value;

  function showPractice() {
    practising = true;
    $("item-h").textContent = texts.practice_heading;
    $("practice-what").hidden = false;
    $("progress").hidden = true;
    $("back").hidden = true;
    $("next").textContent = texts.practice_next;
    $("image").src = page.practice;
    $("image").alt = texts.practice_alt;
    $("status").textContent = "";
    choose("answer", null);
    choose("confidence", "");
    show("item");
  }

  function showItem(note = "") {
    practising = false;
    const i = state.at;
    const answer = state.answers[i];
    answer.visits += 1;
    $("item-h").textContent = say(texts.item_heading, { i: i + 1, n });
    $("practice-what").hidden = true;
    $("progress").hidden = false;
    $("progress").value = i;
    $("back").hidden = !mayGoBack();
    $("next").textContent = texts.next;
    $("image").src = items[i].src;
    $("image").alt = say(texts.item_alt, { i: i + 1, n });
    $("status").textContent = note;
    choose("answer", answer.answer);
    choose("confidence", answer.confidence === null ? "" : answer.confidence);
    show("item");
    shownAt = document.visibilityState === "visible" ? performance.now() : null;
    keep();
    if (i + 1 < n) new Image().src = items[i + 1].src; // decoded while this one is looked at
  }

  function showFinish() {
    $("finish-back").hidden = !mayGoBack();
    show("finish");
  }

  function showDone() {
    $("results").value = results();
    show("done");
  }

  // ---------------------------------------------------------------- answering
  function countTime() {
    if (shownAt === null || !state || practising || $("item").hidden) return;
    const passed = performance.now() - shownAt;
    shownAt = performance.now();
    state.answers[state.at].ms += Math.round(passed);
  }

  function take() {
    if (practising || $("item").hidden) return;
    const answer = state.answers[state.at];
    answer.answer = chosen("answer") || null;
    answer.confidence = chosen("confidence") === "" ? null : Number(chosen("confidence"));
    countTime();
    keep();
  }

  function next() {
    if (!chosen("answer")) {
      $("status").textContent = texts.answer_first;
      document.querySelector('input[name="answer"]').focus();
      return;
    }
    if (practising) {
      state.practised = true;
      keep();
      showItem();
      return;
    }
    take();
    shownAt = null;
    state.at += 1;
    // going forward over an answer that was gone back to does not open the way back again
    if (state.at > state.reached) {
      state.reached = state.at;
      state.back_used = false;
    }
    keep();
    if (state.at === n) showFinish();
    else showItem();
  }

  const mayGoBack = () => state.at > 0 && state.at === state.reached && !state.back_used;

  function back() {
    if (!mayGoBack()) return;
    take();
    shownAt = null;
    state.at -= 1;
    state.back_used = true;
    showItem(say(texts.went_back, { i: state.at + 1 }));
  }

  // ---------------------------------------------------------------- results
  // CRC-32 tells a slip of the editor from an untouched file; it is no protection against forgery.
  function crc32(text) {
    let crc = 0xffffffff;
    for (const byte of new TextEncoder().encode(text)) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ((crc ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
  }

  function results() {
    const body = {
      schema: page.schema,
      version: page.version,
      set_id: page.set_id,
      rater: state.rater,
      sitting: state.sitting,
      started: state.started,
      finished: state.finished,
      language: texts.language,
      window: state.window,
      answers: state.answers.map((answer, i) => ({ image_id: items[i].id, ...answer })),
    };
    return JSON.stringify({ ...body, checksum: crc32(JSON.stringify(body)) }, null, 1) + "\n";
  }

  function download() {
    const name = `turing_${page.set_id}_${state.rater}.json`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([results()], { type: "application/json" }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    $("handed").textContent = say(texts.downloaded, { file: name });
  }

  async function copy() {
    let done = false;
    try {
      await navigator.clipboard.writeText(results());
      done = true;
    } catch {
      $("results").select();
      done = document.execCommand("copy"); // pages from plain http have no clipboard object
    }
    $("handed").textContent = done ? texts.copied : texts.copy_failed;
  }

  // ---------------------------------------------------------------- events
  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    const code = $("code").value.trim();
    const codeRight = new RegExp(page.rater_pattern).test(code);
    $("code-wrong").textContent = codeRight ? "" : texts.code_wrong;
    $("code").setAttribute("aria-invalid", String(!codeRight));
    $("consent-wrong").textContent = $("consent").checked ? "" : texts.consent_wrong;
    $("consent").setAttribute("aria-invalid", String(!$("consent").checked));
    if (!codeRight) return $("code").focus();
    if (!$("consent").checked) return $("consent").focus();
    begin(code);
    return goOn();
  });
  $("resume").addEventListener("click", goOn);
  const discard = (question) => () => {
    if (!window.confirm(say(question, { rater: state.rater }))) return;
    forget();
    showWelcome();
  };
  $("restart").addEventListener("click", discard(texts.restart_sure));
  $("another").addEventListener("click", discard(texts.another_sure));
  $("how-next").addEventListener("click", showPractice);
  $("answer").addEventListener("submit", (event) => {
    event.preventDefault();
    next();
  });
  $("answer").addEventListener("change", () => {
    $("status").textContent = "";
    take();
  });
  $("back").addEventListener("click", back);
  $("finish-back").addEventListener("click", back);
  $("finish-now").addEventListener("click", () => {
    state.finished = now();
    state.window = `${window.innerWidth}x${window.innerHeight}@${Math.round(window.devicePixelRatio * 100) / 100}`;
    keep();
    showDone();
  });
  $("download").addEventListener("click", download);
  $("copy").addEventListener("click", copy);

  document.addEventListener("keydown", (event) => {
    const where = event.target;
    const typing = where.tagName === "TEXTAREA" || (where.tagName === "INPUT" && where.type === "text");
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.isComposing || typing) return;
    const onControl = ["BUTTON", "INPUT", "A"].includes(where.tagName);
    if (event.key === "Enter" && !onControl) {
      const main = screens.map((name) => $(name)).find((screen) => !screen.hidden);
      const button = main && main.id !== "done" && main.querySelector("button.main:not([hidden])");
      if (button && main.id !== "welcome") {
        event.preventDefault();
        button.click();
      }
      return;
    }
    if (!$("keys-on").checked || closed) return;
    const key = event.key.toLowerCase();
    if (key === texts.back_key.toLowerCase() && (!$("item").hidden || !$("finish").hidden) && !practising) return back();
    if ($("item").hidden) return;
    const level = page.levels.find((value) => String(value / 10).slice(-1) === key);
    if (key === texts.real_key.toLowerCase()) choose("answer", "real");
    else if (key === texts.synthetic_key.toLowerCase()) choose("answer", "synthetic");
    else if (level !== undefined) choose("confidence", level);
    else return;
    $("status").textContent = "";
    take();
  });

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") {
      countTime();
      shownAt = null;
      keep();
    } else if (!$("item").hidden && !practising) {
      shownAt = performance.now();
    }
  });
  window.addEventListener("pagehide", () => {
    countTime();
    keep();
  });
  window.addEventListener("storage", (event) => {
    if (event.key !== slot || closed) return;
    closed = true;
    show("elsewhere");
  });
  window.addEventListener("beforeunload", (event) => {
    if (!storage && state && !state.finished) event.preventDefault();
  });

  if (!storage) $("no-storage").textContent = texts.no_storage;
  showWelcome();
})();
