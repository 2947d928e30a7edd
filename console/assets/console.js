// Renews the parts of a page that say `data-live`. Without this script the page is whole, and shows the figures of when it was loaded.
'use strict';

(() => {
  const state = document.getElementById('live-state');
  if (!document.querySelector('[data-live]') || !window.EventSource) return;

  const tell = (text) => {
    if (!state) return;
    state.hidden = text === '';
    if (state.textContent !== text) state.textContent = text;
  };

  // What a person has opened stays open, whatever the server says of it.
  const keepOpened = (name, node) => !(name === 'open' && node.tagName === 'DETAILS');
  const isWanted = () => !document.hidden;
  let isAsking = false;

  const renew = async () => {
    if (isAsking || !isWanted()) return;
    isAsking = true;
    try {
      const answer = await fetch(window.location.href, { headers: { Accept: 'text/html' }, redirect: 'error' });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      for (const part of document.querySelectorAll('[data-live]')) {
        const newer = page.getElementById(part.id);
        if (newer) Idiomorph.morph(part, newer, { ignoreActiveValue: true, callbacks: { beforeAttributeUpdated: keepOpened } });
      }
      tell('');
    } catch {
      tell('The console does not answer: the figures are old.');
    } finally {
      isAsking = false;
    }
  };

  const rounds = new EventSource('/live');
  rounds.addEventListener('round', renew);
  rounds.addEventListener('error', () => tell('The console does not answer: the figures are old.'));
  document.addEventListener('visibilitychange', renew);
})();
