// Boxes and their names on a canvas.

const FONT_PX = 14; // on the screen, however large the picture is
const LINE_PX = 2.5;

/** Draws `objects`, boxes in pixels of an image of `size`, on a canvas that shows the image in `pixelsPerCss`. */
export function drawBoxes(context, objects, size, { colors, pixelsPerCss, hasLabels }) {
  const { width, height } = context.canvas;
  const scale = [width / size.width, height / size.height, width / size.width, height / size.height];
  const line = LINE_PX * pixelsPerCss;
  const font = FONT_PX * pixelsPerCss;
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const placed = objects.map((object) => ({ ...object, box: object.xyxy.map((value, i) => value * scale[i]) }));
  for (const { box, class_id } of placed.toReversed()) { // the most confident on top
    const [left, top, right, bottom] = box;
    context.lineWidth = line + pixelsPerCss;
    context.strokeStyle = "rgb(0 0 0 / 45%)"; // seen on any background
    context.strokeRect(left, top, right - left, bottom - top);
    context.lineWidth = line;
    context.strokeStyle = colors[class_id];
    context.strokeRect(left, top, right - left, bottom - top);
  }
  if (!hasLabels) return;
  const taken = [];
  for (const { box, class_id, name, confidence } of placed) {
    const text = `${name} ${confidence.toFixed(2)}`;
    const labelWidth = context.measureText(text).width + font * 0.7;
    const labelHeight = font * 1.4;
    const place = freePlace(box, labelWidth, labelHeight, width, height, taken);
    if (place === null) continue; // the color tells the class
    taken.push(place);
    context.fillStyle = colors[class_id];
    context.fillRect(place.x, place.y, labelWidth, labelHeight);
    context.fillStyle = isBright(colors[class_id]) ? "#000" : "#fff";
    context.fillText(text, place.x + font * 0.35, place.y + labelHeight * 0.53);
  }
}

/** Where a label hides no other one: above its box, in it, or below; null if there is no such place. */
function freePlace([left, top, right, bottom], w, h, width, height, taken) {
  for (const y of [top - h, top, bottom - h, bottom]) {
    for (const x of [left, right - w]) {
      const place = { x: Math.max(0, Math.min(x, width - w)), y, w, h };
      const isInside = y >= 0 && y + h <= height && w <= width;
      if (isInside && !taken.some((other) => overlaps(place, other))) return place;
    }
  }
  return null;
}

function overlaps(a, b) {
  return a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
}

/** Whether black is easier to read on a color than white (the relative luminance of WCAG 2, section 1.4.3). */
function isBright(color) {
  const [red, green, blue] = [1, 3, 5].map((start) => (parseInt(color.slice(start, start + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18;
}
