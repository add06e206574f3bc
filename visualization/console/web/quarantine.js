// The devices whose updates are not used, and why; nothing where there are none.

import { day, fixed, counted } from "flead-console/words.js";

export default {
  props: { kept: Object, mayAct: Boolean },
  emits: ["ask"],
  template: `
    <section v-if="kept.count" class="card quarantine" aria-labelledby="quarantine-title">
      <div class="card-head"><h2 id="quarantine-title">Quarantine</h2><span class="soft">{{ counted(kept.count, "device") }} kept out of rounds</span></div>
      <div class="wide" role="region" tabindex="0" aria-labelledby="quarantine-title">
        <table>
          <thead><tr><th scope="col" class="text">Device</th><th scope="col" class="text">Why</th><th scope="col">Since</th><th scope="col" title="1: nothing was ever held against it; half: nothing is known">Reputation</th><th scope="col" class="text">State</th><th v-if="mayAct" scope="col"><span class="aside">What can be done</span></th></tr></thead>
          <tbody>
            <tr v-for="one in kept.devices" :key="one.device" :data-device="one.device">
              <td class="text who" :title="one.cohort">{{ one.device }}</td>
              <td class="text why">{{ one.reason ?? "no reason was given" }}</td>
              <td>{{ day(one.since) }}</td>
              <td>{{ fixed(one.reputation, 2) }}</td>
              <td class="text">{{ one.for_good ? "kept out for good" : "waits for a decision" }} <span class="soft">by {{ one.who ?? "the defence" }}</span></td>
              <td v-if="mayAct"><span class="acts">
                <button type="button" class="quiet" :aria-label="'Let ' + one.device + ' in again'" @click="accept(one.device)">Let in again</button>
                <button v-if="!one.for_good" type="button" class="quiet" :aria-label="'Keep ' + one.device + ' out'" @click="reject(one.device)">Keep out</button>
              </span></td>
            </tr>
          </tbody>
        </table>
      </div>
      <p v-if="kept.count > kept.devices.length" class="soft">The newest {{ kept.devices.length }} are shown; GET /api/quarantine lists all.</p>
    </section>`,
  methods: {
    counted, day, fixed,
    accept(device) {
      this.$emit("ask", { title: `Let ${device} in again?`, text: "Its updates are used from now on, as if nothing had been.", verb: "Let in again", wish: { action: "accept", device } });
    },
    reject(device) {
      this.$emit("ask", { title: `Keep ${device} out?`, text: "Its updates are not used until somebody lets it in again.", verb: "Keep out", wish: { action: "reject", device } });
    },
  },
};
