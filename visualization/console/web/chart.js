// A sensor's readings, what was expected of them and how far off that usually is, with ECharts (NiceGUI brings it).

const loaded = () => import("nicegui-echart");

// The colour that the page gives to a name; a chart is a picture and needs it as one.
function colour(element, name) {
  const probe = element.appendChild(document.createElement("i"));
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export class Chart {
  constructor(element) {
    this.element = element;
    this.ended = false;
    this.restyle = () => this.style();
    loaded().then(({ echarts }) => {
      if (this.ended) return;
      this.chart = echarts.init(element, null, { renderer: "canvas" });
      this.resizing = new ResizeObserver(() => this.chart.resize());
      this.resizing.observe(element);
      this.style();
    });
    this.system = matchMedia("(prefers-color-scheme: dark)"); // each call gives another, which keeps its own listeners
    this.system.addEventListener("change", this.restyle);
    addEventListener("flead-theme", this.restyle);
  }

  isGone() {
    return !this.element.isConnected;
  }

  end() {
    this.ended = true;
    this.resizing?.disconnect();
    this.chart?.dispose();
    this.system.removeEventListener("change", this.restyle);
    removeEventListener("flead-theme", this.restyle);
  }

  style() {
    if (!this.chart) return;
    const [ink, soft, rule, card, blue, alarm] = ["ink", "soft", "rule", "card", "blue", "alarm"].map((name) =>
      colour(this.element, name),
    );
    const line = { type: "line", showSymbol: false, animation: false, silent: true };
    const axis = { axisLine: { show: false }, axisTick: { show: false }, axisLabel: { color: soft, fontSize: 11, hideOverlap: true, rich: { primary: { fontWeight: "normal" } } } };
    const flat = ({ min, max }) => max - min < 1e-6; // what stands still is a line, not the noise of arithmetic
    this.chart.setOption(
      {
        animation: false,
        useUTC: true,
        grid: { left: 44, right: 12, top: 8, bottom: 22 },
        xAxis: { type: "time", ...axis, splitLine: { show: false } },
        yAxis: { type: "value", scale: true, splitNumber: 3, min: (of) => (flat(of) ? of.min - 1 : null), max: (of) => (flat(of) ? of.max + 1 : null), ...axis, splitLine: { lineStyle: { color: rule } } },
        tooltip: {
          trigger: "axis", backgroundColor: card, borderColor: rule, textStyle: { color: ink, fontSize: 12 },
          axisPointer: { lineStyle: { color: soft } }, renderMode: "richText",
          formatter: (points) => this.tip(points),
        },
        series: [
          { ...line, id: "low", stack: "band", stackStrategy: "all", lineStyle: { opacity: 0 } },
          { ...line, id: "band", stack: "band", stackStrategy: "all", lineStyle: { opacity: 0 }, areaStyle: { color: blue, opacity: 0.16 } },
          { ...line, id: "expected", lineStyle: { color: blue, width: 1.2, type: [4, 3] } },
          { ...line, id: "observed", lineStyle: { color: ink, width: 1.4 } },
          { ...line, id: "ahead", lineStyle: { color: soft, width: 1, type: [1, 3] }, showSymbol: true, symbol: "emptyCircle", symbolSize: 5, itemStyle: { color: soft } },
          { id: "alarms", type: "scatter", symbol: "triangle", symbolSize: 10, itemStyle: { color: alarm }, animation: false, z: 5 },
        ],
      },
      { notMerge: true },
    );
    if (this.data) this.draw(this.data);
  }

  draw(data) {
    this.data = data;
    if (!this.chart) return;
    const { time, observed, expected, anomaly, miss, ahead } = data;
    const pairs = (of) => time.map((second, place) => [second * 1000, of(place)]);
    const known = miss === null ? () => null : (value) => value;
    const last = observed.at(-1);
    this.chart.setOption({
      series: [
        { id: "low", data: pairs((i) => known(expected[i] === null ? null : expected[i] - miss)) },
        { id: "band", data: pairs((i) => known(expected[i] === null ? null : 2 * miss)) },
        { id: "expected", data: pairs((i) => expected[i]) },
        { id: "observed", data: pairs((i) => observed[i]) },
        { id: "ahead", data: ahead && last !== null ? [[time.at(-1) * 1000, last], [ahead[0] * 1000, ahead[1]]] : [] },
        { id: "alarms", data: pairs((i) => (anomaly[i] ? (observed[i] ?? expected[i]) : null)).filter(([, y]) => y !== null) },
      ],
    });
  }

  tip(points) {
    const place = points[0].dataIndex;
    const { time, observed, expected, anomaly, unit } = this.data;
    if (place >= time.length) return "";
    const number = (value) => (value === null ? "\u2013" : `${+value.toPrecision(5)}${unit ? ` ${unit}` : ""}`);
    const moment = `${new Date(time[place] * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
    return `${moment}\nobserved ${number(observed[place])}\nexpected ${number(expected[place])}${anomaly[place] ? "\nanomaly" : ""}`;
  }
}
