import { jsonSchema } from '../config/schema.ts';
import { connectors } from '../connectors/index.ts';
import { loadFrom } from '../core/table.ts';
import { providers } from '../providers/index.ts';

/** `postern schema`: the JSON Schema of everything that a configuration can name. */
export async function schema(): Promise<object> {
  return jsonSchema({ connectors: await loadFrom(connectors), providers: await loadFrom(providers) });
}
