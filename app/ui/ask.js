// The conversation: presses become events of the component, what a person unfolded stays so, and the page follows.
const events = ["say", "choose", "go", "adjust", "open", "remix", "vary", "refine", "anew"];
const NEAR = 160; // pixels from the end at which somebody is taken to read the newest turn

const opened = new Set();
let turns = 0;
let following = true;

const toEnd = () => element.closest(".ask").scrollIntoView({ block: "end" });

element.addEventListener("click", (press) => {
  const button = press.target.closest("button[data-event]");
  if (button && events.includes(button.dataset.event)) trigger(button.dataset.event, { entry: button.dataset.entry });
  const details = press.target.closest("summary")?.parentElement;
  if (details) details.open ? opened.delete(details.dataset.key) : opened.add(details.dataset.key);
});

window.addEventListener("scroll", () => {
  following = element.closest(".ask").getBoundingClientRect().bottom <= window.innerHeight + NEAR;
});

// Pictures get their height when they have come.
element.addEventListener("load", () => following && element.checkVisibility() && toEnd(), true);

watch("value", () => {
  for (const details of element.querySelectorAll("details[data-key]")) details.open = opened.has(details.dataset.key);
  const now = element.querySelectorAll(".turn").length;
  if ((now > turns || following) && element.checkVisibility()) toEnd();
  turns = now;
});
