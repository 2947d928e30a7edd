"use strict";
// Follows a topic: takes rows that the server has made, keeps the newest 200, and pauses when asked. Only shown where scripts run.
(() => {
  const ROWS_MAX = 200;
  for (const section of document.querySelectorAll("[data-tail]")) {
    const find = (name) => section.querySelector(`[data-tail-${name}]`);
    const button = find("button");
    const state = find("state");
    const rows = find("rows");
    let source = null;
    let leftOut = 0;
    let shown = 0;

    const say = (text) => {
      const missing = leftOut > 0 ? `, ${leftOut} left out because they came too fast` : "";
      state.textContent = `${text}: ${shown} shown${missing}`;
    };
    const stop = () => {
      source.close();
      source = null;
      button.textContent = "Follow";
      button.setAttribute("aria-pressed", "false");
      say("paused");
    };
    const follow = () => {
      source = new EventSource(section.dataset.tail);
      button.textContent = "Pause";
      button.setAttribute("aria-pressed", "true");
      find("frame").hidden = false;
      say("waiting for records");
      source.addEventListener("rows", (event) => {
        const news = JSON.parse(event.data);
        const made = document.createElement("template");
        made.innerHTML = `<table><tbody>${news.rows}</tbody></table>`;
        const came = [...made.content.querySelectorAll("tbody > tr")];
        rows.prepend(...came);
        while (rows.rows.length > ROWS_MAX) rows.deleteRow(-1);
        shown += came.length;
        leftOut += news.leftOut;
        say("following");
      });
      source.addEventListener("trouble", (event) => say(event.data));
      source.onerror = () => {
        // The browser asks again by itself, unless the server has refused.
        if (source && source.readyState === EventSource.CLOSED) {
          stop();
          say("the console refuses; too many pages follow, or a field is wrong");
        } else {
          say("connection lost, trying again");
        }
      };
    };
    button.addEventListener("click", () => (source ? stop() : follow()));
    find("controls").hidden = false;
    section.querySelector(".without-script").hidden = true;
  }
})();
