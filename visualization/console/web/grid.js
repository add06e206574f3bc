// The devices: one button each, touched only where a frame says that something changed.
// A thousand of them would be slow as Vue's elements and are not as buttons of our own.

import { STATES, inOrder, sharedBeginning, stateInWords } from "flead-console/words.js";

const ORDER = Object.keys(STATES); // worst first
const NAMED = 160; // up to so many devices have their name on them
const SORT_MS = 2500; // the order changes no more often, and never under a pointer or the keyboard
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export default {
  props: { positions: Object, order: String, search: String, hiddenStates: Array, opened: String },
  emits: ["open", "point"],
  template: `<div class="grid" role="group" aria-label="Devices" @keydown="onKey" @click="onClick"
    @focusin="onFocus" @pointerover="onPoint" @pointerleave="$emit('point', null)"></div>`,
  created() {
    this.cells = new Map(); // name -> {button, state, alarms}; not reactive, as Vue need not know
    this.current = null; // the one that Tab reaches
    this.sorted = [];
    this.byName = [];
    this.dirty = false;
    this.sortedAt = 0;
  },
  watch: {
    order() { this.arrange(true); },
    search() { this.filter(); },
    hiddenStates() { this.filter(); },
    opened(name, before) {
      this.cells.get(before)?.button.removeAttribute("aria-expanded");
      this.cells.get(name)?.button.setAttribute("aria-expanded", "true");
    },
  },
  methods: {
    apply(frame) {
      if (frame.anew) this.clear();
      for (const [name, state, alarms] of frame.devices) this.put(name, state, alarms);
      this.arrange(false);
    },
    clear() {
      this.cells.clear();
      this.byName = [];
      this.sorted = [];
      this.$el.replaceChildren();
      this.dirty = true;
    },
    put(name, state, alarms) {
      let cell = this.cells.get(name);
      if (!cell) {
        const button = document.createElement("button");
        const [sign, label, count] = ["sign", "name", "count"].map((part) => {
          const span = document.createElement("span");
          span.className = part;
          return button.appendChild(span);
        });
        button.type = "button";
        button.className = "cell";
        button.tabIndex = -1;
        button.dataset.name = name;
        label.textContent = name; // text, never HTML: names come from outside
        sign.setAttribute("aria-hidden", "true");
        if (name === this.opened) button.setAttribute("aria-expanded", "true");
        cell = { button, label, count, state: null, alarms: 0 };
        this.cells.set(name, cell);
        this.$el.append(button);
        this.dirty = true;
      }
      if (cell.state !== state) {
        cell.button.dataset.state = state;
        cell.state = state;
        this.dirty = true;
        cell.button.hidden = this.isHidden(name, cell);
      }
      if (cell.alarms !== alarms) {
        cell.alarms = alarms;
        cell.count.textContent = alarms ? (alarms < 100 ? alarms : "99+") : "";
      }
      cell.button.setAttribute("aria-label", `${name}: ${stateInWords(state, alarms)}`);
    },
    isHidden(name, cell) {
      const search = this.search.trim().toLowerCase();
      return this.hiddenStates.includes(cell.state) || (search !== "" && !name.toLowerCase().includes(search));
    },
    filter() {
      for (const [name, cell] of this.cells) cell.button.hidden = this.isHidden(name, cell);
      this.keepOneReachable();
    },
    arrange(now) {
      const held = this.$el.matches(":hover, :focus-within") && this.sorted.length === this.cells.size;
      const due = performance.now() - this.sortedAt > SORT_MS || this.sorted.length !== this.cells.size;
      if (!now && !(this.dirty && due && !held)) return;
      this.sortedAt = performance.now();
      this.dirty = false;
      const map = this.order === "map";
      this.$el.classList.toggle("map", map);
      this.$el.classList.toggle("dense", !map && this.cells.size > NAMED);
      if (this.byName.length !== this.cells.size) this.byName = [...this.cells.keys()].sort(inOrder);
      const inState = (state) => this.byName.filter((name) => this.cells.get(name).state === state);
      const names = this.order === "trouble" ? ORDER.flatMap(inState) : this.byName;
      this.reorder(names.map((name) => this.cells.get(name).button));
      this.sorted = names;
      this.label(map ? sharedBeginning(names) : "");
      if (map) this.place();
      this.keepOneReachable();
    },
    // On a map there is little room: what all names begin with is left out.
    label(beginning) {
      for (const [name, { label }] of this.cells) label.textContent = name.slice(beginning.length);
    },
    // Moves as few as it can: a thousand that are put down anew would take a frame or two.
    reorder(buttons) {
      const focused = document.activeElement;
      let next = this.$el.firstChild;
      for (const button of buttons) {
        if (button === next) next = next.nextSibling;
        else if (next?.nextSibling === button) next = button.nextSibling; // the one passed over has its turn later
        else this.$el.insertBefore(button, next);
      }
      if (this.$el.contains(focused) && document.activeElement !== focused) focused.focus({ preventScroll: true });
    },
    place() {
      const known = this.sorted.filter((name) => this.positions[name]).map((name) => this.positions[name]);
      const span = [0, 1].map((axis) => {
        const values = known.map((position) => position[axis]);
        return [Math.min(...values), Math.max(...values)];
      });
      const [width, height] = span.map(([low, high]) => high - low || 1);
      this.$el.style.setProperty("--ratio", Math.min(3, Math.max(0.8, width / height)));
      for (const [name, { button }] of this.cells) {
        const position = this.positions[name];
        button.classList.toggle("lost", !position);
        if (!position) continue;
        button.style.left = `${(100 * (position[0] - span[0][0])) / width}%`;
        button.style.bottom = `${(100 * (position[1] - span[1][0])) / height}%`;
      }
    },
    keepOneReachable() {
      const reachable = this.cells.get(this.current)?.button;
      if (reachable && !reachable.hidden) return;
      if (reachable) reachable.tabIndex = -1;
      this.current = this.sorted.find((name) => !this.cells.get(name).button.hidden) ?? null;
      if (this.current !== null) this.cells.get(this.current).button.tabIndex = 0;
    },
    focus(name) {
      this.cells.get(name)?.button.focus();
    },
    onFocus(event) {
      const before = this.cells.get(this.current);
      if (before) before.button.tabIndex = -1;
      event.target.tabIndex = 0;
      this.current = event.target.dataset.name;
      this.onPoint(event);
    },
    onClick(event) {
      const button = event.target.closest(".cell");
      if (button) this.$emit("open", button.dataset.name);
    },
    onPoint(event) {
      const name = event.target.closest(".cell")?.dataset.name;
      const cell = this.cells.get(name);
      this.$emit("point", cell ? `${name}: ${stateInWords(cell.state, cell.alarms)}` : null);
    },
    onKey(event) {
      const shown = this.sorted.filter((name) => !this.cells.get(name).button.hidden);
      if (!shown.length) return;
      let next = null;
      if (event.key in STEPS) next = this.neighbour(shown, STEPS[event.key]);
      else if (event.key === "Home") next = shown[0];
      else if (event.key === "End") next = shown.at(-1);
      else return;
      event.preventDefault();
      if (next !== null) this.focus(next);
    },
    // The nearest one in a direction, by where they are drawn: the same for rows and for a map.
    neighbour(shown, [right, down]) {
      const middle = (name) => {
        const { offsetLeft: x, offsetTop: y, offsetWidth: w, offsetHeight: h } = this.cells.get(name).button;
        return [x + w / 2, y + h / 2];
      };
      if (this.order !== "map" && right) return shown[shown.indexOf(this.current) + right] ?? null;
      const [x, y] = middle(this.current);
      let best = null;
      let least = Infinity;
      for (const name of shown) {
        const [dx, dy] = middle(name).map((value, axis) => value - [x, y][axis]);
        const ahead = dx * right + dy * down;
        const aside = Math.abs(dx * down) + Math.abs(dy * right);
        const far = ahead + 3 * aside + (aside > ahead ? 1e6 : 0); // rather far ahead than hardly ahead at all
        if (ahead > 1 && far < least) [best, least] = [name, far];
      }
      return best;
    },
  },
};
