/** Text as the wire has it: a string with a character for each byte. The names of the configuration are UTF-8. */
export function byteString(text: string): string {
  return Buffer.from(text).toString('latin1');
}

/** A byte string as people read it. */
export function textOf(bytes: string): string {
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
