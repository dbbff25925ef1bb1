// An exported model in the browser, run by onnxruntime-web; index.html shows how to use it.

const SAME_OBJECT_IOU = 0.9;

export class Detector {
  /**
   * @param ort onnxruntime-web
   * @param {Uint8Array} bytes an ONNX file that rtdetrv4 exported
   * @param {string} device "wasm" or "webgpu"
   */
  static async create(ort, bytes, device = "wasm") {
    const metadata = readMetadata(bytes);
    const { input = "images", outputs, channels, scale } = metadata;
    if (input !== "images" || outputs !== "postprocessed" || channels !== "RGB" || scale !== "1/255")
      throw new Error("this page cannot read such a file; export it without --raw and --frames");
    const session = await ort.InferenceSession.create(bytes, { executionProviders: [device] });
    return new Detector(ort, session, metadata);
  }

  constructor(ort, session, metadata) {
    Object.assign(this, { ort, session, metadata });
  }

  /**
   * Run the network.
   * @param image {data, width, height} with data in RGBA, as getImageData returns it
   * @returns {Promise<Array>} everything it lists, by descending confidence: {confidence, label, box},
   *     boxes as left, top, right, bottom in [0, 1] of the network's input
   */
  async run(image) {
    const [height, width] = this.metadata.image_size;
    const fixed = this.session.inputMetadata[0].shape[0];
    const batch = typeof fixed === "number" ? fixed : 1;
    const values = new Float32Array(batch * 3 * height * width);
    values.set(preprocess(image, this.metadata));
    const images = new this.ort.Tensor("float32", values, [batch, 3, height, width]);
    const { scores, labels, boxes } = await this.session.run({ [this.session.inputNames[0]]: images });
    return Array.from({ length: scores.dims[1] }, (_, i) => ({
      confidence: scores.data[i],
      label: Number(labels.data[i]),
      box: Array.from(boxes.data.subarray(4 * i, 4 * i + 4)),
    }));
  }

  /** Objects in an image of this size, each once, with `name` and `box` in pixels; `listed` is what `run` returned. */
  select(listed, confidence, { width, height }) {
    const { names, image_size } = this.metadata;
    const content = contentOf({ width, height }, this.metadata);
    const scale = [width / content.width, height / content.height];
    const start = [content.left, content.top];
    const size = [image_size[1], image_size[0]];
    return withoutDuplicates(listed.filter((one) => one.confidence >= confidence))
      .map((one) => ({
        ...one,
        name: names[one.label],
        box: one.box.map((value, side) => (value * size[side % 2] - start[side % 2]) * scale[side % 2]),
      }))
      .filter(({ box }) => box[0] <= width && box[1] <= height && box[2] >= 0 && box[3] >= 0)
      .map((one) => ({
        ...one,
        box: one.box.map((value, side) => Math.min(Math.max(value, 0), side % 2 ? height : width)),
      }));
  }
}

/** What a file says of itself: its metadata entry "rtdetrv4", which onnxruntime-web does not pass on. */
export function readMetadata(bytes) {
  for (const [id, message] of fields(bytes)) {
    if (id !== 14) continue; // metadata_props of ModelProto
    const entry = new Map(fields(message));
    const [key, value] = [1, 2].map((part) => new TextDecoder().decode(entry.get(part)));
    if (key === "rtdetrv4") return JSON.parse(value);
  }
  throw new Error("this file was not exported by rtdetrv4");
}

/** The fields of a protobuf message: pairs of a number and a value. */
function* fields(bytes) {
  let position = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[position++];
      if (byte === undefined) throw new Error("this is no ONNX file");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (position < bytes.length) {
    const tag = varint();
    if (tag % 8 !== 0 && tag % 8 !== 2) throw new Error("this is no ONNX file");
    const value = varint();
    if (tag % 8 === 2) position += value;
    yield [Math.floor(tag / 8), tag % 8 === 2 ? bytes.subarray(position - value, position) : value];
  }
}

/** An image as the network's input: 3×H×W in [0, 1], black where no image is. */
export function preprocess(image, metadata) {
  const [height, width] = metadata.image_size;
  const content = contentOf(image, metadata);
  // Sides that shrink are averaged, so that thin objects survive; then sides that grow are interpolated.
  const small = shrink(image, Math.min(image.width, content.width), Math.min(image.height, content.height));
  const { data } = grow(small, content.width, content.height);
  const values = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++)
    for (let y = 0; y < content.height; y++)
      for (let x = 0; x < content.width; x++)
        values[(channel * height + content.top + y) * width + content.left + x] =
          data[4 * (y * content.width + x) + channel] / 255;
  return values;
}

/** The rectangle of the network's input that shows an image: all of it, or with a letterbox its middle. */
function contentOf(image, { image_size, resize }) {
  let [height, width] = image_size;
  if (resize === "letterbox") {
    const [tall, wide] = [image.height * width, image.width * height];
    if (tall > wide) width = Math.max(Math.floor((2 * wide + image.height) / (2 * image.height)), 1);
    else height = Math.max(Math.floor((2 * tall + image.width) / (2 * image.width)), 1);
  }
  const [top, left] = [Math.floor((image_size[0] - height) / 2), Math.floor((image_size[1] - width) / 2)];
  return { top, left, height, width };
}

// Both ways of resizing round as OpenCV does, so that the network sees the very pixels that it sees in Python.

/** An image in RGBA at a smaller size: each new pixel is the mean of the area that it covers. */
function shrink({ data, width, height }, newWidth, newHeight) {
  if (width === newWidth && height === newHeight) return { data, width, height };
  const row = 4 * newWidth;
  const columns = covered(width, newWidth);
  const means = new Float32Array(row * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < newWidth; x++)
      for (const [source, weight] of columns[x])
        for (let channel = 0; channel < 4; channel++)
          means[y * row + 4 * x + channel] += Math.fround(weight * data[4 * (y * width + source) + channel]);
  const resized = new Uint8ClampedArray(row * newHeight); // rounds halves to even
  const isHalf = width === 2 * newWidth && height === 2 * newHeight;
  const sum = new Float32Array(row);
  covered(height, newHeight).forEach((parts, y) => {
    sum.fill(0);
    for (const [source, weight] of parts)
      for (let i = 0; i < row; i++) sum[i] += Math.fround(weight * means[source * row + i]);
    resized.set(isHalf ? sum.map((value) => Math.floor(value + 0.5)) : sum, y * row);
  });
  return { data: resized, width: newWidth, height: newHeight };
}

/** For each new pixel along a side, the old ones that it covers, with their weights. */
function covered(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, i) => {
    const [start, end] = [i * scale, Math.min((i + 1) * scale, from)];
    const parts = [];
    for (let pixel = Math.floor(start); pixel < end; pixel++) {
      const part = Math.min(pixel + 1, end) - Math.max(pixel, start);
      if (part > 1e-3) parts.push([pixel, Math.fround(part / scale)]);
    }
    return parts;
  });
}

/** An image in RGBA at a larger size, by linear interpolation in whole numbers. */
function grow({ data, width, height }, newWidth, newHeight) {
  if (width === newWidth && height === newHeight) return { data, width, height };
  const row = 4 * newWidth;
  const columns = between(width, newWidth);
  const wide = new Int32Array(row * height);
  for (let y = 0; y < height; y++)
    columns.forEach(([left, right, weight], x) => {
      for (let channel = 0; channel < 4; channel++)
        wide[y * row + 4 * x + channel] =
          data[4 * (y * width + left) + channel] * (2048 - weight) + data[4 * (y * width + right) + channel] * weight;
    });
  const resized = new Uint8ClampedArray(row * newHeight);
  between(height, newHeight).forEach(([top, bottom, weight], y) => {
    for (let i = 0; i < row; i++) {
      const above = ((2048 - weight) * (wide[top * row + i] >> 4)) >> 16;
      const below = (weight * (wide[bottom * row + i] >> 4)) >> 16;
      resized[y * row + i] = (above + below + 2) >> 2;
    }
  });
  return { data: resized, width: newWidth, height: newHeight };
}

/** For each new pixel along a side, the two old ones around it, and the weight of the second in parts of 2048. */
function between(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const center = Math.min(Math.max((i + 0.5) * (from / to) - 0.5, 0), from - 1);
    const first = Math.floor(center);
    return [first, Math.min(first + 1, from - 1), Math.round((center - first) * 2048)];
  });
}

/** Of equal boxes the first, the better label; then of boxes of one class that are nearly the same the first. */
function withoutDuplicates(listed) {
  const queries = new Map();
  for (const one of listed) if (!queries.has(String(one.box))) queries.set(String(one.box), one);
  const objects = [];
  for (const one of queries.values())
    if (!objects.some((better) => better.label === one.label && iou(better.box, one.box) >= SAME_OBJECT_IOU))
      objects.push(one);
  return objects;
}

function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const both = Math.max(width, 0) * Math.max(height, 0);
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both);
}
