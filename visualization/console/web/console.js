// The page: takes frames from the server, hands each part its share, says when it has drawn.

import alerts from "flead-console/alerts.js";
import confirm from "flead-console/confirm.js";
import device from "flead-console/device.js";
import grid from "flead-console/grid.js";
import model from "flead-console/model.js";
import quarantine from "flead-console/quarantine.js";
import { STATES, at, counted, millis, rate, whole } from "flead-console/words.js";

const LATE_S = 4; // without a frame for so long, what is shown is old
const TOLD_S = 20; // what became of something that was asked for is shown for so long
const SERVICE = { running: "ok", finished: "ok", starting: "learning", restarting: "alarm", backoff: "alarm", fatal: "alarm", stopped: "silent", exited: "silent" };
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

// An address that somebody typed may hold a "%" that means itself.
function decoded(text) {
  try {
    return decodeURIComponent(text.replace(/%(?![0-9a-f]{2})/gi, "%25"));
  } catch {
    return text;
  }
}

export default {
  components: { alerts, confirm, device, grid, model, quarantine },
  props: { positions: Object, kinds: Object, person: Object, mayAct: Boolean },
  emits: ["drawn", "show", "act", "compare"],
  data: () => ({
    frame: null, late: false, order: null, search: "", hidden: [], pointed: null, opened: null,
    told: null, compared: null,
    theme: document.documentElement.dataset.theme,
  }),
  created() {
    Object.assign(this, { STATES, SERVICE, THEMES }); // the same for ever: Vue need not watch them
    this.order = localStorage.getItem("flead-order") ?? (this.mapped ? "map" : "trouble");
    if (this.order === "map" && !this.mapped) this.order = "trouble";
    this.prefix = location.pathname.replace(/\/(device\/.*)?$/, "");
  },
  mounted() {
    addEventListener("popstate", this.fromAddress);
    addEventListener("keydown", this.onKey);
    document.addEventListener("visibilitychange", () => { this.frameAt &&= performance.now(); }); // hidden, it got none
    this.fromAddress();
    setInterval(() => { this.late = this.frameAt !== undefined && performance.now() - this.frameAt > LATE_S * 1000 && !document.hidden; }, 1000);
  },
  computed: {
    mapped() { return Object.keys(this.positions).length > 0; },
    orders() { return { trouble: "Troubled first", name: "By name", ...(this.mapped ? { map: "Map" } : {}) }; },
    devices() { return Object.values(this.frame.tally).reduce((sum, count) => sum + count, 0); },
    spark() {
      const series = this.frame.figures.series;
      const top = Math.max(1, ...series);
      return series.map((value, place) => `${((place * 100) / (series.length - 1)).toFixed(1)},${(22 - (20 * value) / top).toFixed(1)}`).join(" ");
    },
    tiles() {
      const { figures, run, models } = this.frame;
      const waiting = run?.state !== "over" ? run?.lag["flead.readings"] : undefined;
      const made = models.reduce((sum, one) => sum + one.made, 0);
      const pending = models.reduce((sum, one) => sum + one.pending, 0);
      const refused = figures.counts.dead_letter;
      return [
        { name: "Readings predicted", value: rate(figures.per_second.prediction), unit: "/s", spark: true },
        { name: "From reading to prediction", value: millis(figures.latency_ms.p50), ...(figures.latency_ms.p50 === null ? {} : { unit: "typical", more: `${millis(figures.latency_ms.p99)} for 99 of 100` }) },
        { name: "Readings waiting", value: waiting === undefined ? "\u2013" : whole(waiting), more: run ? "" : "known in a run" },
        { name: "Alarms", value: whole(figures.last_minute.alert), unit: "/min" },
        { name: "Rounds", value: whole(made), more: pending ? `${counted(pending, "device")} waiting` : "" },
        { name: "Refused records", value: whole(refused), more: Object.keys(figures.reasons)[0]?.replaceAll("_", " ") ?? "" },
      ];
    },
    notices() {
      const found = [];
      if (this.late) found.push(`No connection to the server since ${at(this.frame.now)}: this is how things were then.`);
      if (this.frame.kafka) found.push(`Kafka cannot be read: ${this.frame.kafka}. The console goes on by itself when it answers.`);
      if (!this.frame.stored) found.push("MongoDB does not answer: rounds wait until it does.");
      if (!this.frame.run) found.push("No run in this folder: the states of services and what waits are not known.");
      else if (this.frame.run.state === "over") found.push("The run in this folder is over, or does not say how it is: services are shown as they were last.");
      return found;
    },
    waits() { return Object.entries(this.frame.run?.lag ?? {}); },
  },
  template: `
    <div class="console">
      <header class="top">
        <a class="brand" :href="prefix + '/'" @click.prevent="open(null)"><svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8"/><path d="M5 18h5l3-9 5 15 3-9 2 3h4"/></svg>FLEAD</a>
        <span class="live" :class="{ late }" v-if="frame"><i></i>{{ late ? "not connected" : "live" }} <time>{{ at(frame.now) }}</time></span>
        <span class="space"></span>
        <span v-if="person" class="person"><span class="soft">{{ person.name }}, {{ person.role }}</span> <button type="button" class="quiet" @click="logOut">Log out</button></span>
        <label class="theme"><span class="aside">Colours</span><select v-model="theme" @change="setTheme">
          <option v-for="(name, value) in THEMES" :key="value" :value="value">{{ name }}</option></select></label>
      </header>
      <p v-if="!frame" class="nothing wait">Waiting for the first figures.</p>
      <template v-else>
        <p class="told" role="alert" v-if="told" :data-done="told.done ? 'true' : 'false'">{{ told.text }} <button type="button" class="quiet" @click="told = null">Close</button></p>
        <ul class="notices" v-if="notices.length" role="status"><li v-for="notice in notices" :key="notice">{{ notice }}</li></ul>
        <section class="answers" aria-label="In short">
          <article v-for="(answer, name) in frame.answers" :key="name" class="card answer" :data-level="answer.level" :data-about="name">
            <span class="mark" aria-hidden="true"></span>
            <h2>{{ { devices: "Devices", model: "Global model", pipeline: "Pipeline" }[name] }}</h2>
            <p class="headline">{{ answer.headline }}</p>
            <p class="soft">{{ answer.detail }}</p>
          </article>
        </section>
        <section class="tiles card" aria-label="Figures">
          <div v-for="tile in tiles" :key="tile.name" class="tile">
            <h3>{{ tile.name }}</h3>
            <p class="number">{{ tile.value }}<small v-if="tile.unit">{{ tile.unit }}</small></p>
            <svg v-if="tile.spark" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true"><polyline :points="spark"/></svg>
            <p v-else class="soft">{{ tile.more }}</p>
          </div>
        </section>
        <div class="halves">
          <section class="card devices" aria-labelledby="devices-title">
            <div class="card-head">
              <h2 id="devices-title">{{ counted(devices, "device") }}</h2>
              <div class="segments" role="group" aria-label="Order">
                <button v-for="(name, value) in orders" :key="value" type="button" :aria-pressed="order === value ? 'true' : 'false'" @click="setOrder(value)">{{ name }}</button>
              </div>
            </div>
            <div class="tools">
              <input ref="search" type="search" v-model="search" placeholder="Find a device ( / )" aria-label="Find a device">
              <div class="legend" role="group" aria-label="States that are shown">
                <button v-for="(state, name) in STATES" :key="name" type="button" :aria-pressed="hidden.includes(name) ? 'false' : 'true'" :title="state.means" @click="toggle(name)">
                  <span class="sign" :data-state="name" aria-hidden="true"></span>{{ state.name }} <b>{{ whole(frame.tally[name]) }}</b></button>
              </div>
            </div>
            <p v-if="!devices" class="nothing">No device has been heard of yet. Devices appear here with their first reading.</p>
            <grid ref="grid" :positions="positions" :order="order" :search="search" :hidden-states="hidden" :opened="opened ?? ''" @open="open" @point="pointed = $event"/>
            <p class="pointed soft" aria-hidden="true">{{ pointed ?? (devices ? "Arrow keys move, Enter opens, Esc closes." : "") }}</p>
          </section>
          <alerts ref="alerts" :kinds="kinds" @open="open"/>
        </div>
        <model :models="frame.models" :may-act="mayAct" :compared="compared" @ask="$refs.confirm.ask($event)" @compare="$emit('compare', $event)"/>
        <quarantine :kept="frame.quarantine" :may-act="mayAct" @ask="$refs.confirm.ask($event)"/>
        <section class="card services" aria-labelledby="services-title">
          <div class="card-head"><h2 id="services-title">Services</h2><span v-if="frame.run" class="soft">{{ frame.run.state }}</span></div>
          <ul v-if="frame.run" class="states">
            <li v-for="[name, state, restarts] in frame.run.services" :key="name"><span class="sign" :data-state="SERVICE[state] ?? 'learning'" aria-hidden="true"></span>{{ name }}
              <span v-if="state !== 'running' || restarts" class="soft">{{ state }}<template v-if="restarts">, {{ counted(restarts, "restart") }}</template></span></li>
          </ul>
          <p v-else class="nothing">Known where <code>flead up</code> runs them.</p>
          <h3>Records that wait, by topic</h3>
          <ul v-if="waits.length" class="states"><li v-for="[topic, count] in waits" :key="topic"><b>{{ whole(count) }}</b><span class="soft">{{ topic.replace("flead.", "") }}</span></li></ul>
          <p v-else class="nothing">Not known.</p>
        </section>
        <footer class="soft">Arrow keys, Enter, Esc: devices. <kbd>/</kbd> find. <kbd>p</kbd> pause alarms. Since this server started: {{ counted(frame.figures.counts.prediction, "prediction") }}, {{ counted(frame.figures.counts.alert, "alarm") }}<template v-if="frame.figures.unreadable">, {{ counted(frame.figures.unreadable, "unreadable record") }}</template>.</footer>
      </template>
      <device v-if="opened !== null" ref="device" :key="opened" :name="opened" @close="open(null)"/>
      <confirm ref="confirm" @sure="$emit('act', $event)"/>
    </div>`,
  methods: {
    at, counted, whole,
    draw(frame) {
      const { devices, episodes, device, ...summary } = frame;
      this.frame = Object.freeze(summary);
      this.frameAt = performance.now();
      this.late = false;
      this.$nextTick(() => {
        this.$refs.grid.apply(frame);
        this.$refs.alerts.apply(frame);
        if (device) this.$refs.device?.apply(device);
        requestAnimationFrame(() => this.$emit("drawn", frame.number));
      });
    },
    // What became of something that was asked for.
    tell(told) {
      this.told = told;
      this.compared = null;
      clearTimeout(this.telling);
      this.telling = setTimeout(() => { this.told = null; }, TOLD_S * 1000);
    },
    showDifference(found) {
      this.compared = found;
    },
    // The log-in that opened this page holds no longer: the server says where to log in again.
    ended() {
      if (!this.leaving) location.reload();
    },
    async logOut() {
      this.leaving = true; // we go by ourselves
      await fetch("/api/session", { method: "DELETE" }).catch(() => null);
      location.assign("/login");
    },
    open(name) {
      if (name === this.opened) return;
      const path = name === null ? "/" : `/device/${encodeURIComponent(name)}`;
      history.pushState(null, "", this.prefix + path);
      this.show(name);
    },
    show(name) {
      const before = this.opened;
      if (before === null) this.opener = document.activeElement; // where the keyboard goes back to
      this.opened = name;
      document.title = name === null ? "FLEAD" : `${name} \u2013 FLEAD`;
      this.$emit("show", name);
      if (name === null && before !== null) this.$nextTick(() => this.leave(before));
    },
    // Back to where a device was opened from; to its cell where that is gone.
    leave(device) {
      this.opener?.focus();
      if (document.activeElement !== this.opener || this.opener === document.body) this.$refs.grid?.focus(device);
    },
    fromAddress() {
      const found = location.pathname.slice(this.prefix.length).match(/^\/device\/(.+)$/);
      const name = found ? decoded(found[1]) : null;
      if (name !== this.opened) this.show(name);
    },
    toggle(state) {
      this.hidden = this.hidden.includes(state) ? this.hidden.filter((one) => one !== state) : [...this.hidden, state];
    },
    setOrder(order) {
      this.order = order;
      localStorage.setItem("flead-order", order);
    },
    setTheme() {
      document.documentElement.dataset.theme = this.theme;
      localStorage.setItem("flead-theme", this.theme);
      dispatchEvent(new Event("flead-theme"));
    },
    onKey(event) {
      if (document.querySelector("dialog[open]")) return; // it has the keyboard
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.closest?.("input, select, textarea");
      if (event.key === "Escape" && this.opened !== null) this.open(null);
      else if (event.key === "Escape" && event.target === this.$refs.search) this.search = "";
      else if (event.key === "/" && !typing) this.$refs.search?.focus();
      else if (event.key === "p" && !typing) this.$refs.alerts?.toggle();
      else return;
      event.preventDefault();
    },
  },
};
