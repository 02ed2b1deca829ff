"use strict";
/* The review page's requests to its server. Decisions are sent immediately, one at a time, and retried until the server
   has stored them. `tell` gets messages about this, `counts` the new numbers of images per verdict, `refused` the id of
   an image whose decision the server refused. */
function reviewServer(tell, counts, refused) {
  async function answer(path, options) {
    let response;
    try {
      response = await fetch(path, options);
    } catch {
      throw new Error("The server does not answer. Is tagseg review still running?");
    }
    if (response.ok) return response;
    const told = await response.json().catch(() => ({}));
    throw Object.assign(new Error(told.error || "The server failed (" + response.status + ")."), { status: response.status });
  }

  const pictures = new Map(); // of recent images and of the next one
  function picture(url) {
    const made = pictures.get(url) || load(url);
    pictures.delete(url);
    pictures.set(url, made);
    if (pictures.size > 16) pictures.delete(pictures.keys().next().value);
    return made;
  }
  async function load(url) {
    try {
      const image = new Image();
      const place = URL.createObjectURL(await (await answer(url)).blob());
      image.src = place;
      await image.decode().finally(() => URL.revokeObjectURL(place));
      return image;
    } catch (error) {
      pictures.delete(url);
      throw error;
    }
  }
  const photoOf = (item) => "photo?" + new URLSearchParams({ id: item.id });
  const maskOf = (item) => "mask?" + new URLSearchParams({ id: item.id, off: item.off, threshold: item.threshold, ...(item.parts.length && { parts: item.parts }), ...(item.network && { network: 1 }) });

  const unsaved = new Map();
  let sent = Promise.resolve();
  let sending = false;
  function save(item) {
    unsaved.delete(item.id);
    const network = item.verdict === "accepted" && item.network === true;
    unsaved.set(item.id, { verdict: item.verdict, off: item.off, threshold: item.threshold, ...(network && { network }) });
    if (!sending) sent = send();
  }
  async function send() {
    sending = true;
    for (let wait = 500; unsaved.size;) {
      const [id, decision] = unsaved.entries().next().value;
      const done = () => { if (unsaved.get(id) === decision) unsaved.delete(id); };
      tell("Saving …");
      try {
        const body = JSON.stringify({ id, ...decision });
        const response = await answer("decide", { method: "POST", headers: { "content-type": "application/json" }, body });
        done();
        wait = 500;
        counts((await response.json()).counts);
        if (!unsaved.size) tell("Saved: " + id + " " + decision.verdict);
      } catch (error) {
        // A wrong address or a broken server may recover; a decision that was refused always will be.
        if (error.status < 500 && error.status !== 403) {
          done();
          tell("Not saved: " + id + ". " + error.message, true);
          await refused(id);
          continue;
        }
        tell("Not saved yet (" + unsaved.size + " decision" + (unsaved.size > 1 ? "s" : "") + "), retrying. " + error.message, true);
        await new Promise((resume) => setTimeout(resume, wait));
        wait = Math.min(2 * wait, 8000);
      }
    }
    sending = false;
  }
  window.addEventListener("beforeunload", (event) => { if (unsaved.size) event.preventDefault(); });

  return { answer, picture, photoOf, maskOf, save, unsaved, sent: () => sent };
}
