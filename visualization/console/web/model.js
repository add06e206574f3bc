// The global model of a cohort: skill by version, who has adopted what, and what becomes of versions.

import versions from "flead-console/versions.js";
import { counted, share, whole } from "flead-console/words.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [320, 120, 34, 18, 10];

export default {
  components: { versions },
  props: { models: Array, mayAct: Boolean, compared: Object },
  emits: ["ask", "compare"],
  data: () => ({ chosen: null }),
  computed: {
    model() {
      return this.models.find((model) => model.cohort === this.chosen) ?? this.models[0];
    },
    adopted() {
      const most = Math.max(1, ...this.model.adopted.map(([, devices]) => devices));
      return this.model.adopted.slice(-8).reverse().map(([version, devices]) => ({
        version, devices, width: `${(100 * devices) / most}%`,
      }));
    },
    line() {
      const points = this.model.skills.filter(([, readings, skill]) => readings >= 200 && skill !== null);
      if (points.length < 2) return null;
      const [first, last] = [points[0][0], points.at(-1)[0]];
      const skills = points.map(([, , skill]) => skill);
      const low = Math.max(-1, Math.min(0, ...skills)); // far below zero its digits do not matter
      const high = Math.max(0.02, ...skills);
      const x = (version) => LEFT + ((version - first) / (last - first)) * (WIDTH - LEFT - 8);
      const y = (skill) => TOP + ((high - Math.max(skill, low)) / (high - low)) * (HEIGHT - TOP - BOTTOM);
      return {
        first, last, y,
        ticks: [low, 0, high].filter((tick) => tick === 0 || Math.abs(tick) > (high - low) / 6),
        path: points.map(([version, , skill]) => `${x(version).toFixed(1)},${y(skill).toFixed(1)}`).join(" "),
        dots: points.map(([version, readings, skill]) => ({ x: x(version), y: y(skill), version, readings, skill })),
      };
    },
  },
  created() {
    Object.assign(this, { WIDTH, HEIGHT, LEFT });
  },
  template: `
    <section class="card model" aria-labelledby="model-title">
      <div class="card-head">
        <h2 id="model-title">Global model</h2>
        <select v-if="models.length > 1" :value="model.cohort" @change="chosen = $event.target.value" aria-label="Cohort">
          <option v-for="one in models" :key="one.cohort" :value="one.cohort">{{ one.cohort }}</option>
        </select>
        <span v-else-if="model" class="soft name" :title="model.cohort">{{ model.cohort }}</span>
      </div>
      <p v-if="!model" class="nothing">No device has been heard of yet.</p>
      <div v-else class="halved">
        <figure>
          <figcaption>How much better than \u201cno change\u201d forecasts are, by version</figcaption>
          <svg v-if="line" :viewBox="'0 0 ' + WIDTH + ' ' + HEIGHT" role="img"
            :aria-label="share(line.dots[0].skill) + ' with version ' + line.first + ', ' + share(line.dots.at(-1).skill) + ' with version ' + line.last">
            <g class="axis">
              <line v-for="value in line.ticks" :x1="LEFT" :x2="WIDTH" :y1="line.y(value)" :y2="line.y(value)"/>
              <text v-for="value in line.ticks" :x="LEFT - 6" :y="line.y(value) + 3.5" text-anchor="end">{{ share(value) }}</text>
              <text :x="LEFT" :y="HEIGHT - 3">{{ line.first || "none" }}</text>
              <text :x="WIDTH - 6" :y="HEIGHT - 3" text-anchor="end">{{ line.last }}</text>
            </g>
            <polyline class="trend" :points="line.path"/>
            <circle v-for="dot in line.dots" :cx="dot.x" :cy="dot.y" r="2.2"><title>version {{ dot.version }}: {{ share(dot.skill) }} over {{ counted(dot.readings, "reading") }}</title></circle>
          </svg>
          <p v-else class="nothing">Two versions have to be compared: it comes with the rounds.</p>
        </figure>
        <figure>
          <figcaption>Devices by the version that they have</figcaption>
          <ul class="bars" v-if="adopted.length">
            <li v-for="one in adopted" :key="one.version">
              <span>{{ one.version || "none" }}</span><span class="bar"><i :style="{ width: one.width }"></i></span><b>{{ whole(one.devices) }}</b>
            </li>
          </ul>
          <p v-else class="nothing">No device has been heard of yet.</p>
        </figure>
      </div>
      <versions v-if="model" :key="model.cohort" :model="model" :may-act="mayAct" :compared="compared" @ask="$emit('ask', $event)" @compare="$emit('compare', $event)"/>
    </section>`,
  methods: { counted, share, whole },
};
