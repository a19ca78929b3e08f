// Search: without words that say nothing, and in pages from the disk, where browsers start
// no workers. The script of the worker then runs in a hidden frame. The theme looks for
// the name IFrameWorker.
const emptyWords = new Set(
  "a an and are as at by can do does for how i in is it my of on or our the to we what which your".split(" ")
);
const QUERY = 2; // the type of a message that searches

// The theme searches for words that begin like those of the query, "a" as "a*".
function withoutEmptyWords(message) {
  if (message.type !== QUERY || message.data.includes('"')) return message;
  const words = message.data.split(/\s+/).filter(word => !emptyWords.has(word.toLowerCase()));
  return words.join("") ? {...message, data: words.join(" ")} : message;
}

if (location.protocol === "file:")
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script src="${url}"></script>`;
      this.inside = new Promise(resolve => {
        frame.onload = () => {
          const inside = frame.contentWindow;
          inside.postMessage = data =>
            this.dispatchEvent(new MessageEvent("message", {data}));
          resolve(inside);
        };
      });
      document.body.append(frame);
    }
    async postMessage(message) {
      const inside = await this.inside;
      const data = withoutEmptyWords(message);
      inside.dispatchEvent(new inside.MessageEvent("message", {data}));
    }
  };
else
  window.Worker = class extends Worker {
    postMessage(message) {
      super.postMessage(withoutEmptyWords(message));
    }
  };
