// The versions of a cohort's global model: the stable one, the one on trial, what became of the others; two compared.

import { at, counted, day, fixed, share, signed, whole } from "flead-console/words.js";

const SIGNS = { stable: "ok", "on trial": "learning", "rolled back": "noted", "was stable": "silent" };

export default {
  props: { model: Object, mayAct: Boolean, compared: Object },
  emits: ["ask", "compare"],
  data: () => ({ a: null, b: null }),
  created() {
    this.SIGNS = SIGNS;
  },
  computed: {
    trial() { return this.model.trial; },
    stable() { return this.model.versions.find((one) => one.version === this.model.stable); },
    tried() { return this.model.versions.find((one) => one.version === this.trial?.version); },
    priv() { return this.model.versions.some((one) => one.epsilon != null); },
    pair() {
      const numbers = this.model.numbers;
      const [stable, newest] = [this.model.stable ?? numbers.at(-1), numbers[0]];
      return { a: this.known(this.a) ?? (stable === newest ? numbers[1] : stable), b: this.known(this.b) ?? newest };
    },
    difference() {
      const { compared, model } = this;
      return compared?.cohort === model.cohort ? compared : null;
    },
    layers() {
      const most = Math.max(...this.difference.layers, 1e-300);
      return this.difference.layers.map((distance) => ({ distance: fixed(distance, 4), width: `${(100 * distance) / most}%` }));
    },
  },
  template: `
    <div class="versions">
      <div class="standing">
        <section aria-label="Stable version">
          <h3>Stable</h3>
          <p v-if="stable" class="which"><b>Version {{ stable.version }}</b> <span class="soft">made {{ day(stable.at) }}</span></p>
          <p v-else class="nothing">None yet: the first round makes it.</p>
          <p v-if="stable?.decision" class="soft">{{ stable.decision }}</p>
          <div v-if="stable?.parent && mayAct" class="acts"><button type="button" class="quiet" :aria-label="'Roll back version ' + stable.version" @click="rollBackStable">Roll back</button></div>
        </section>
        <section aria-label="Version on trial">
          <h3>On trial</h3>
          <template v-if="trial">
            <p class="which"><b>Version {{ trial.version }}</b> <span class="soft">since {{ day(trial.since) }}, with {{ whole(trial.expected) }} of {{ counted(trial.expected + trial.others, "device") }} that report their errors</span></p>
            <dl class="facts">
              <dt>Have it and reported</dt><dd>{{ whole(trial.canaries) }} of {{ whole(trial.expected) }}</dd>
              <dt>Others that reported</dt><dd>{{ whole(trial.controls) }} of {{ whole(trial.others) }}</dd>
              <dt>Rise of their errors</dt><dd>{{ trial.rise == null ? "not known yet" : signed(trial.rise) }}</dd>
              <dt>Waits for</dt><dd>{{ trial.waits }}</dd>
              <template v-if="trial.automatic"><dt>Decided at the latest</dt><dd>{{ day(trial.until) }}</dd></template>
            </dl>
            <div v-if="mayAct" class="acts">
              <button type="button" class="quiet" :aria-label="'Promote version ' + trial.version" @click="promote(trial.version)">Promote</button>
              <button type="button" class="quiet" :aria-label="'Roll back version ' + trial.version" @click="rollBackTrial">Roll back</button>
            </div>
          </template>
          <p v-else class="nothing">None: the newest version is decided on.</p>
        </section>
        <section aria-label="Compare two versions">
          <h3>Compare</h3>
          <form v-if="model.numbers.length > 1" class="pair" @submit.prevent="$emit('compare', { cohort: model.cohort, ...pair })">
            <select :value="pair.a" @change="a = +$event.target.value" aria-label="Version"><option v-for="one in model.numbers" :key="one" :value="one">{{ one }}</option></select>
            <span class="soft">with</span>
            <select :value="pair.b" @change="b = +$event.target.value" aria-label="Other version"><option v-for="one in model.numbers" :key="one" :value="one">{{ one }}</option></select>
            <button type="submit" class="quiet">Compare</button>
          </form>
          <p v-else class="nothing">It takes two versions.</p>
          <div v-if="difference" class="difference" role="group" aria-live="polite" :aria-label="'Version ' + difference.b + ' against version ' + difference.a">
            <p>{{ difference.b }} against {{ difference.a }}: distance <b>{{ fixed(difference.distance, 4) }}</b>, {{ share(difference.relative) }} of the length of {{ difference.a }}; cosine <b>{{ fixed(difference.cosine, 4) }}</b></p>
            <ul class="bars"><li v-for="(layer, place) in layers" :key="place"><span>layer {{ place + 1 }}</span><span class="bar"><i :style="{ width: layer.width }"></i></span><b>{{ layer.distance }}</b></li></ul>
          </div>
        </section>
      </div>
      <div v-if="model.versions.length" class="wide" role="region" tabindex="0" aria-label="Newest versions">
        <table>
          <caption>Newest of {{ counted(model.made, "round") }}<template v-if="model.pending">; {{ counted(model.pending, "device") }} waiting for the next</template></caption>
          <thead><tr><th scope="col">Version</th><th scope="col" class="text">Stage</th><th scope="col">Made</th><th scope="col">Parent</th><th scope="col">Devices</th><th scope="col">Readings</th><th scope="col" class="text">Strategy</th><th scope="col" title="its devices' mean error when it was made, standard deviations">Loss</th><th v-if="priv" scope="col" title="what is known of a device since the first round">\u03b5</th><th scope="col" class="text">Decision</th><th v-if="mayAct" scope="col"><span class="aside">What can be done</span></th></tr></thead>
          <tbody>
            <tr v-for="one in model.versions" :key="one.version" :data-version="one.version" :data-stage="one.stage">
              <td>{{ one.version }}</td>
              <td class="text stage"><span class="sign" :data-state="SIGNS[one.stage]" aria-hidden="true"></span>{{ one.stage }}</td>
              <td>{{ day(one.at) }}</td>
              <td>{{ whole(one.parent) }}</td>
              <td>{{ whole(one.devices) }}<template v-if="one.left_out"> <span class="soft">({{ whole(one.left_out) }} left out)</span></template></td>
              <td>{{ whole(one.samples) }}</td>
              <td class="text">{{ one.strategy }}</td>
              <td>{{ fixed(one.loss, 3) }}</td>
              <td v-if="priv">{{ fixed(one.epsilon, 2) }}</td>
              <td class="text why">{{ one.decision }}<template v-if="one.decided_at"> <span class="soft">{{ day(one.decided_at) }}</span></template></td>
              <td v-if="mayAct"><button v-if="one.stage !== 'stable'" type="button" class="quiet" :aria-label="'Promote version ' + one.version" @click="promote(one.version)">Promote</button></td>
            </tr>
          </tbody>
        </table>
      </div>
      <p v-else class="nothing">No round was made yet.</p>
    </div>`,
  methods: {
    counted, day, fixed, share, signed, whole,
    known(version) {
      return this.model.numbers.includes(version) ? version : null;
    },
    ask(action, version, title, text, verb) {
      this.$emit("ask", { title, text, verb, wish: { action, cohort: this.model.cohort, version } });
    },
    promote(version) {
      const inUse = Math.max(this.model.stable ?? 0, this.trial?.version ?? 0);
      const later = inUse > version ? " Later versions are taken back." : "";
      this.ask("promote", version, `Make version ${version} the stable one?`, `Every device of ${this.model.cohort} gets it.${later}`, "Promote");
    },
    rollBackTrial() {
      const text = `The devices that have it go back to version ${this.model.stable}, and what they learned from it is not used.`;
      this.ask("roll_back", this.trial.version, `Take version ${this.trial.version} back?`, text, "Roll back");
    },
    rollBackStable() {
      const text = `Every device of ${this.model.cohort} goes back to the stable version before it. Later versions are taken back, too.`;
      this.ask("roll_back", this.stable.version, `Take version ${this.stable.version} back?`, text, "Roll back");
    },
  },
};
