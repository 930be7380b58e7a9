import { createInterface } from 'node:readline';
import { Client } from 'pg';

/*
 * The application of the demo: an ordinary program with an ordinary driver. It takes host, port, database and user
 * from the usual PG* variables, the address of an HTTP API from ORDERS_API, and has no password or token anywhere.
 * It knows nothing of Postern, or of a secret store.
 *
 * It does what it is told on standard input, a word a line, and answers each with one line of JSON.
 */

const question =
  "select current_user as user, version() as server, date_trunc('second', now())::text as at, (select count(*)::int from orders) as orders";

const sessions: Client[] = [];

async function connect(): Promise<Client> {
  const session = new Client({ application_name: 'orders-app' });
  // A session that breaks off is noticed by the next query.
  session.on('error', () => {});
  await session.connect();
  sessions.push(session);
  return session;
}

async function obey(word: string): Promise<unknown> {
  switch (word) {
    case 'environment':
      return process.env;
    case 'connect':
      return await ask(await connect());
    case 'ask-first':
      return await ask(sessions[0]);
    case 'ask-api': {
      const response = await fetch(`${process.env['ORDERS_API']}/orders`);
      return { status: response.status, body: (await response.text()).trim() };
    }
    default:
      throw new Error('there are: environment, connect, ask-first, ask-api');
  }
}

async function ask(session: Client | undefined): Promise<unknown> {
  const result = await session?.query<Record<string, unknown>>(question);
  return result?.rows[0];
}

for await (const word of createInterface({ input: process.stdin })) {
  try {
    process.stdout.write(`${JSON.stringify({ answer: await obey(word) })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ error: (error as Error).message })}\n`);
  }
}
for (const session of sessions) await session.end();
