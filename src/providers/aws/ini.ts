import { trimmed } from '../../core/bytes.ts';

/** A section of AWS's shared files: keys in lower case, values as views of the file's bytes, which hold secrets. */
export type Section = ReadonlyMap<string, Buffer>;

/**
 * Reads the INI of ~/.aws/config and ~/.aws/credentials from bytes to bytes. Lines that are indented belong to a
 * nested setting (`s3 =`), which nothing here needs. Of two sections with one name the keys are merged, later ones win.
 */
export function parseIni(file: Buffer): ReadonlyMap<string, Section> {
  const sections = new Map<string, Map<string, Buffer>>();
  let current: Map<string, Buffer> | undefined;
  for (let from = 0; from < file.length; ) {
    const newline = file.indexOf(0x0a, from);
    const end = newline === -1 ? file.length : newline;
    const line = trimmed(file.subarray(from, end));
    const indented = file[from] === 0x20 || file[from] === 0x09;
    from = end + 1;
    const first = line[0];
    if (first === undefined || first === 0x23 || first === 0x3b) continue;
    if (first === 0x5b) {
      const close = line.indexOf(0x5d);
      const name = line.toString('utf8', 1, close === -1 ? line.length : close).trim();
      current = sections.get(name) ?? new Map<string, Buffer>();
      sections.set(name, current);
      continue;
    }
    const equals = line.indexOf(0x3d);
    if (indented || equals === -1 || !current) continue;
    current.set(
      line.toString('utf8', 0, equals).trim().toLowerCase(),
      trimmed(withoutComment(line.subarray(equals + 1))),
    );
  }
  return sections;
}

/** ` #` and ` ;` begin a comment behind a value. */
function withoutComment(value: Buffer): Buffer {
  const starts = [value.indexOf(' #'), value.indexOf(' ;')].filter((at) => at !== -1);
  return starts.length === 0 ? value : value.subarray(0, Math.min(...starts));
}
