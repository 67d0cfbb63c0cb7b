// Heat map over an image: cold regions fade, hot regions stay.

const SIDE = 192;

/** Weights of a quadratic B-spline, as in edje_qdrant.explain.heat_map: smooth and never negative. */
function spread(pixels, cells, start, end) {
  const rows = [];
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = (((pixel + 0.5) / pixels - start) / (end - start)) * cells - 0.5;
    const row = new Float32Array(cells);
    if (place >= -0.5 && place <= cells - 0.5) {
      let total = 0;
      for (let cell = 0; cell < cells; cell++) {
        const distance = Math.abs(place - cell);
        if (distance < 0.5) row[cell] = 0.75 - distance * distance;
        else if (distance < 1.5) row[cell] = 0.5 * (1.5 - distance) ** 2;
        total += row[cell];
      }
      for (let cell = 0; cell < cells; cell++) row[cell] /= total;
    }
    rows.push(row);
  }
  return rows;
}

/** Draw heat, an array of rows, on a canvas that covers the image. */
export function drawHeat(canvas, heat, area, strength = 1) {
  const down = spread(SIDE, heat.length, area[1], area[3]);
  const across = spread(SIDE, heat[0].length, area[0], area[2]);
  const values = new Float32Array(SIDE * SIDE);
  let most = 0;
  for (let y = 0; y < SIDE; y++) {
    const line = new Float32Array(heat[0].length);
    heat.forEach((row, r) => row.forEach((value, c) => (line[c] += down[y][r] * value)));
    for (let x = 0; x < SIDE; x++) {
      let value = 0;
      for (let c = 0; c < line.length; c++) value += across[x][c] * line[c];
      values[y * SIDE + x] = value;
      most = Math.max(most, value);
    }
  }
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  const image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < values.length; i++) {
    const share = most > 0 ? values[i] / most : 0;
    const cold = (1 - Math.min(1, share * 1.6)) ** 1.4;
    const warm = Math.max(0, share - 0.55) / 0.45;
    // A dark veil where it is cold, a breath of orange where it is hottest.
    const veil = 0.78 * cold * strength;
    const glow = 0.34 * warm * strength;
    const alpha = veil + glow;
    image.data[4 * i] = alpha ? (16 * veil + 255 * glow) / alpha : 0;
    image.data[4 * i + 1] = alpha ? (20 * veil + 120 * glow) / alpha : 0;
    image.data[4 * i + 2] = alpha ? (22 * veil + 20 * glow) / alpha : 0;
    image.data[4 * i + 3] = 255 * Math.min(1, alpha);
  }
  context.putImageData(image, 0, 0);
  return most > 0;
}
