// One device: what it said last, and its readings beside what was expected of them, as they come.

import { STATES, at, counted, fixed, measured, stateInWords, whole } from "flead-console/words.js";
import { Chart } from "flead-console/chart.js";

const CHARTS = 4;
const KEPT = 400;

export default {
  props: { name: String },
  emits: ["close"],
  data: () => ({ told: null, chosen: [], unknown: false }),
  created() {
    this.charts = new Map();
    this.forget();
  },
  computed: {
    facts() {
      const { last, cohort, seen, drifts } = this.told;
      return [
        ["Model version", last.model_version || "none yet"],
        ["Readings learned from", whole(last.samples_seen)],
        ["Error of the last forecast", last.error == null ? "too early" : `${fixed(last.error, 2)} typical deviations`],
        ["Strangeness of the last reading", fixed(last.anomaly_score, 4)],
        ["Drift", drifts ? `found ${drifts === 1 ? "once" : `${drifts} times`}` : "none found"],
        ["Reading of", last.timestamp.slice(0, 19).replace("T", " ") + " UTC"],
        ["Heard of at", at(seen)],
        ["Cohort", cohort],
      ];
    },
    sensors() {
      const { sensors, units, last } = this.told;
      return sensors.map((sensor, place) => ({
        sensor, place, unit: units[place],
        observed: measured(last.observed[sensor], units[place]),
        expected: measured(last.expected?.[sensor], units[place]),
        ahead: measured(last.horizon?.[sensor], units[place]),
        score: last.sensor_scores?.[sensor],
      }));
    },
    minutes() {
      return Math.round((this.told.last.horizon_s ?? 0) / 60);
    },
  },
  watch: {
    name() { this.forget(); },
    chosen: { handler() { this.$nextTick(this.drawCharts); }, deep: true },
  },
  mounted() {
    this.$refs.title.focus({ preventScroll: true });
  },
  beforeUnmount() {
    for (const chart of this.charts.values()) chart.end();
  },
  template: `
    <aside class="device" role="dialog" aria-modal="false" aria-labelledby="device-title">
      <header>
        <h2 id="device-title" ref="title" tabindex="-1">{{ name }}</h2>
        <span v-if="told" class="chip" :data-state="told.state"><span class="sign" :data-state="told.state" aria-hidden="true"></span>{{ words(told.state, told.alarms) }}</span>
        <button type="button" class="quiet close" @click="$emit('close')" aria-label="Close">Close</button>
      </header>
      <p v-if="unknown" class="nothing">Nothing was heard of this device in the last half hour. It shows here when it sends.</p>
      <template v-if="told">
        <p v-if="told.episodes.length" class="said">{{ told.episodes[0].text }}<small> at {{ at(told.episodes[0].last) }}</small></p>
        <div class="chips" role="group" aria-label="Sensors that are drawn">
          <button v-for="one in sensors" :key="one.sensor" type="button" :aria-pressed="chosen.includes(one.sensor) ? 'true' : 'false'"
            @click="choose(one.sensor)">{{ one.sensor }}</button>
        </div>
        <p class="key" aria-hidden="true"><span><i class="observed"></i>observed</span><span><i class="expected"></i>expected</span><span><i class="band"></i>where 19 of 20 readings lie</span><span><i class="sign" data-state="alarm"></i>anomaly</span><span><i class="ahead"></i>{{ minutes }} min ahead</span><span>times in UTC</span></p>
        <figure v-for="sensor in chosen" :key="sensor" class="chart">
          <figcaption><b>{{ sensor }}</b><span v-for="one in sensors.filter((one) => one.sensor === sensor)" :key="one.sensor">
            <b class="now">{{ one.observed }}</b> expected {{ one.expected }}; in {{ minutes }} min {{ one.ahead }}</span></figcaption>
          <div class="canvas" :data-sensor="sensor" role="img" :aria-label="sensor + ', the newest readings'"></div>
        </figure>
        <dl><template v-for="[what, value] in facts" :key="what"><dt>{{ what }}</dt><dd>{{ value }}</dd></template></dl>
        <h3 v-if="told.episodes.length">Its alarms</h3>
        <ol class="past"><li v-for="one in told.episodes" :key="one.number"><time>{{ at(one.first) }}</time> {{ one.text }}<span v-if="one.count > 1" class="times">&times;{{ one.count }}</span></li></ol>
      </template>
    </aside>`,
  methods: {
    at, counted,
    words: stateInWords,
    forget() {
      this.told = null;
      this.unknown = false;
      this.time = [];
      this.anomaly = [];
      this.observed = [];
      this.expected = [];
    },
    apply(told) {
      if (told.name !== this.name) return;
      this.unknown = told.sensors === null;
      if (this.unknown) return;
      if (told.anew) {
        this.forget();
        this.observed = told.sensors.map(() => []);
        this.expected = told.sensors.map(() => []);
        const alarming = told.last.sensor;
        const first = [...told.sensors].sort((a, b) => (b === alarming) - (a === alarming)).slice(0, CHARTS);
        this.chosen = told.sensors.filter((sensor) => first.includes(sensor));
      }
      const marked = new Map(told.rows.anomalies); // row -> the sensor's place; behind the last: the whole device
      this.time.push(...told.rows.time);
      this.anomaly.push(...told.rows.time.map((_, row) => marked.get(row) ?? -1));
      told.sensors.forEach((_, place) => {
        this.observed[place].push(...told.rows.observed[place]);
        this.expected[place].push(...told.rows.expected[place]);
      });
      for (const column of [this.time, this.anomaly, ...this.observed, ...this.expected])
        column.splice(0, Math.max(0, column.length - KEPT));
      this.told = Object.freeze(told);
      if (told.rows.time.length) this.$nextTick(this.drawCharts);
    },
    choose(sensor) {
      const chosen = this.chosen.includes(sensor) ? this.chosen.filter((one) => one !== sensor) : [...this.chosen, sensor];
      this.chosen = this.told.sensors.filter((one) => chosen.includes(one)).slice(-CHARTS);
    },
    drawCharts() {
      if (!this.told) return;
      for (const [sensor, chart] of this.charts) {
        if (chart.isGone()) {
          chart.end();
          this.charts.delete(sensor);
        }
      }
      for (const element of this.$el.querySelectorAll(".canvas")) {
        const sensor = element.dataset.sensor;
        const place = this.told.sensors.indexOf(sensor);
        if (place < 0) continue;
        if (!this.charts.has(sensor)) this.charts.set(sensor, new Chart(element));
        const { last, miss, units } = this.told;
        this.charts.get(sensor).draw({
          time: this.time, anomaly: this.anomaly.map((which) => which === place || which === this.told.sensors.length), observed: this.observed[place], expected: this.expected[place],
          miss: miss[place], unit: units[place],
          ahead: last.horizon?.[sensor] == null ? null : [this.time.at(-1) + last.horizon_s, last.horizon[sensor]],
        });
      }
    },
  },
};
