/** A sequence of numbers that a seed repeats exactly: `below(n)` is a whole number from 0 to n - 1. */
export interface Random {
  below(limit: number): number;
}

/** Mulberry32. Not for secrets. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return {
    below(limit) {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
    },
  };
}

/** Longest input that is tried. */
export const LONGEST_INPUT = 64 * 1024;

/** A new input from old ones: mostly one of them with a few changes, now and then nothing but noise. */
export function nextInput(inputs: readonly Buffer[], random: Random): Buffer {
  if (inputs.length === 0 || random.below(20) === 0) return noise(random, random.below(300));
  let input: Buffer = Buffer.from(pick(inputs, random));
  for (let changes = 1 + random.below(4); changes > 0; changes--)
    input = pick(mutations, random)(input, random, inputs);
  return input.subarray(0, LONGEST_INPUT);
}

type Mutation = (input: Buffer, random: Random, inputs: readonly Buffer[]) => Buffer;

/** Bytes and numbers at which parsers change their mind. */
const edges = [0x00, 0x01, 0x20, 0x2c, 0x30, 0x3d, 0x7f, 0x80, 0x81, 0x84, 0xff];
const edgeNumbers = [0, 1, 3, 4, 5, 0xff, 0x100, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

const mutations: readonly Mutation[] = [
  // one bit, one byte, one edge byte
  (input, random) => changed(input, random, (byte) => byte ^ (1 << random.below(8))),
  (input, random) => changed(input, random, () => random.below(256)),
  (input, random) => changed(input, random, () => pick(edges, random)),
  // a number of four bytes, such as a length
  (input, random) => {
    if (input.length < 4) return input;
    input.writeUInt32BE(pick(edgeNumbers, random), random.below(input.length - 3));
    return input;
  },
  // noise put in, a piece taken out, cut short, repeated
  (input, random) => {
    const at = random.below(input.length + 1);
    return Buffer.concat([input.subarray(0, at), noise(random, 1 + random.below(8)), input.subarray(at)]);
  },
  (input, random) => {
    const { from, to } = piece(input, random);
    return Buffer.concat([input.subarray(0, from), input.subarray(to)]);
  },
  (input, random) => input.subarray(0, random.below(input.length + 1)),
  (input, random) => {
    const { from, to } = piece(input, random);
    const times = 1 + random.below(random.below(10) === 0 ? 200 : 3);
    const copies = Array.from({ length: times }, () => input.subarray(from, to));
    return Buffer.concat([input.subarray(0, to), ...copies, input.subarray(to)]);
  },
  // the start of this one and the end of another
  (input, random, inputs) => {
    const other = pick(inputs, random);
    const end = other.subarray(random.below(other.length + 1));
    return Buffer.concat([input.subarray(0, random.below(input.length + 1)), end]);
  },
];

function changed(input: Buffer, random: Random, change: (byte: number) => number): Buffer {
  if (input.length === 0) return input;
  const at = random.below(input.length);
  input[at] = change(input[at] as number);
  return input;
}

function piece(input: Buffer, random: Random): { from: number; to: number } {
  const from = random.below(input.length + 1);
  return { from, to: from + random.below(input.length - from + 1) };
}

function noise(random: Random, length: number): Buffer {
  return Buffer.from(Array.from({ length }, () => random.below(256)));
}

function pick<T>(choices: readonly T[], random: Random): T {
  return choices[random.below(choices.length)] as T;
}
