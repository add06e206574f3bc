// Asks once more before something is done. The browser's own dialog: it holds the keyboard, Esc leaves it.

export default {
  emits: ["sure"],
  data: () => ({ asked: null }),
  template: `
    <dialog ref="dialog" class="confirm" aria-labelledby="confirm-title" aria-describedby="confirm-text">
      <form v-if="asked" method="dialog" @submit="sure">
        <h2 id="confirm-title">{{ asked.title }}</h2>
        <p id="confirm-text">{{ asked.text }}</p>
        <div class="acts"><button type="button" class="quiet" autofocus @click="$refs.dialog.close()">Cancel</button><button type="submit" class="sure">{{ asked.verb }}</button></div>
      </form>
    </dialog>`,
  methods: {
    ask(asked) {
      this.asked = asked;
      this.$nextTick(() => this.$refs.dialog.showModal());
    },
    sure() {
      this.$emit("sure", this.asked.wish);
    },
  },
};
