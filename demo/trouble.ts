/** Why the demo cannot go on, in one sentence for the person in front of it. */
export class Trouble extends Error {
  override readonly name = 'Trouble';
}
