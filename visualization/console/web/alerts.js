// The feed of alarms: newest first, alarms of one device together, still while it is paused.

import { at } from "flead-console/words.js";

const MOST = 120;

export default {
  props: { kinds: Object },
  emits: ["open"],
  data: () => ({ episodes: [], paused: false, waiting: 0, kind: "", search: "" }),
  created() {
    this.known = new Map(); // number -> episode, as the server last told
  },
  computed: {
    shown() {
      const search = this.search.trim().toLowerCase();
      return this.episodes
        .filter((one) => (!this.kind || one.kind === this.kind) && (!search || one.device.toLowerCase().includes(search)))
        .slice(0, MOST);
    },
  },
  template: `
    <section class="card alerts" aria-labelledby="alerts-title">
      <div class="card-head">
        <h2 id="alerts-title">Alarms</h2>
        <button type="button" class="quiet" :aria-pressed="paused ? 'true' : 'false'" @click="toggle">
          {{ paused ? (waiting ? "Go on, " + waiting + " newer" : "Go on") : "Pause" }}</button>
      </div>
      <div class="tools">
        <input type="search" v-model="search" placeholder="Device" aria-label="Alarms of this device">
        <select v-model="kind" aria-label="Alarms of this kind">
          <option value="">Any kind</option>
          <option v-for="(means, name) in kinds" :key="name" :value="name">{{ name }}: {{ means }}</option>
        </select>
      </div>
      <ol class="feed" v-if="shown.length">
        <li v-for="one in shown" :key="one.number" :data-number="one.number" :data-count="one.count">
          <button type="button" @click="$emit('open', one.device)">
            <span class="sign" :data-state="one.count < 3 ? 'noted' : 'alarm'" aria-hidden="true"></span>
            <span class="who">{{ one.device }}<span v-if="one.count > 1" class="times"
              :aria-label="one.count + ' alarms'">&times;{{ one.count }}</span></span>
            <time>{{ at(one.last) }}</time>
            <span class="what">{{ one.text }}</span>
          </button>
        </li>
      </ol>
      <p v-else class="nothing">{{ episodes.length ? "None that match." : "No alarms lately." }}</p>
    </section>`,
  methods: {
    at,
    apply(frame) {
      if (frame.anew) this.known.clear();
      for (const episode of frame.episodes) this.known.set(episode.number, Object.freeze(episode));
      while (this.known.size > 200) this.known.delete(this.known.keys().next().value);
      if (this.paused) this.waiting = [...this.known.keys()].filter((number) => number > this.last).length;
      else if (frame.anew || frame.episodes.length) this.show();
    },
    show() {
      this.episodes = [...this.known.values()].sort((a, b) => b.number - a.number);
      this.last = this.episodes[0]?.number ?? 0;
    },
    toggle() {
      this.paused = !this.paused;
      this.waiting = 0;
      if (!this.paused) this.show();
    },
  },
};
