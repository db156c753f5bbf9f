"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.images.length) return;
  const image = document.getElementById("image"), slider = document.getElementById("site");
  const now = document.getElementById("site-now"), agreement = document.getElementById("agreement");

  function show() {
    const i = image ? Number(image.value) : 0;
    const site = slider ? data.sites[Number(slider.value) - 1] : { label: "", pictures: {} };
    for (const picture of document.querySelectorAll("img[data-base]")) picture.src = data.images[i];
    for (const picture of document.querySelectorAll("img[data-layer]")) {
      const found = site.pictures[picture.dataset.layer] || data.fixed[picture.dataset.layer];
      picture.hidden = !found;
      if (!found) continue;
      picture.src = found[i];
      picture.alt = `${picture.dataset.title}, image ${i + 1}` + (found === data.fixed[picture.dataset.layer] ? "" : `, ${site.label}`);
    }
    if (slider) {
      now.textContent = site.label;
      slider.setAttribute("aria-valuetext", `${slider.value} of ${data.sites.length}, ${site.label}`);
    }
    agreement.textContent = data.agreement[i] || "";
  }

  // The browser may bring back old values of the controls when a page is opened again: read them, do not assume.
  if (image) image.addEventListener("input", show);
  if (slider) slider.addEventListener("input", show);
  show();
})();
