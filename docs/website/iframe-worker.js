// Pages opened from disk cannot start workers, which the search needs. Run it in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class IFrameWorker {
    #scope = new Promise((resolve) => {
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, title: "search", srcdoc: "" });
      this.frame.addEventListener("load", () => resolve(this.frame.contentWindow));
    });

    constructor(url) {
      this.ready = this.#scope.then((scope) => {
        // Forward messages in both directions, copied as between a page and a worker: the search changes what it receives.
        scope.postMessage = (data) => this.onmessage?.(new MessageEvent("message", { data: structuredClone(data) }));
        const script = Object.assign(scope.document.createElement("script"), { src: new URL(url, location.href).href });
        scope.document.head.append(script);
        return new Promise((resolve) => script.addEventListener("load", () => resolve(scope)));
      });
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.ready.then((scope) => scope.dispatchEvent(new scope.MessageEvent("message", { data: structuredClone(data) })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
