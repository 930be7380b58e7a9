import { connectors as connectorTable } from '../../src/connectors/index.ts';
import { loadFrom } from '../../src/core/table.ts';
import { providers as providerTable } from '../../src/providers/index.ts';

/** Every connector, loaded. */
export const connectors = await loadFrom(connectorTable);

/** Every kind of provider, loaded. */
export const providers = await loadFrom(providerTable);
