// A browser shows no HEIC and no TIFF: such an attachment gets a tile with its ending instead of a broken picture.
document.addEventListener(
  "error",
  (event) => {
    const picture = event.target;
    if (!(picture instanceof HTMLImageElement) || !picture.closest(".thumbnails") || picture.src.startsWith("data:")) return;
    const ending = new URL(picture.src).pathname.split(".").pop().replace(/\W/g, "").slice(0, 4).toUpperCase();
    const tile = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48"><text x="24" y="29" text-anchor="middle"
      font-family="sans-serif" font-size="14" fill="#6b6560">${ending}</text></svg>`;
    picture.src = `data:image/svg+xml,${encodeURIComponent(tile)}`;
  },
  true,
);
