// fetch, undici, axios and ws as test clients; see ../README.md.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import axios from 'axios';
import { EnvHttpProxyAgent, request } from 'undici';

const [library = '', action = '', url = ''] = process.argv.slice(2);
const upload = Buffer.alloc(16_384 * 64, 'z');

interface Answer {
  readonly status: number;
  readonly type: string;
  readonly content: Buffer;
}

interface Call {
  readonly method: 'GET' | 'POST';
  readonly body: Buffer | undefined;
  readonly headers: Record<string, string>;
}

async function* pieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 16_384) yield bytes.subarray(at, at + 16_384);
}

const libraries: Readonly<Record<string, (call: Call) => Promise<Answer>>> = {
  /** With NODE_USE_ENV_PROXY and NODE_EXTRA_CA_CERTS, and nothing else. */
  fetch: async ({ method, body, headers }) => {
    const answer = await fetch(url, {
      method,
      headers,
      redirect: 'manual',
      ...(body && { body: ReadableStream.from(pieces(body)), duplex: 'half' }),
    } as RequestInit);
    return {
      status: answer.status,
      type: answer.headers.get('content-type') ?? '',
      content: Buffer.from(await answer.arrayBuffer()),
    };
  },
  undici: async ({ method, body, headers }) => {
    const file = process.env['NODE_EXTRA_CA_CERTS'];
    const tls = file === undefined ? {} : { ca: readFileSync(file) };
    const dispatcher = new EnvHttpProxyAgent({ requestTls: tls, connect: tls });
    const answer = await request(url, {
      method,
      headers,
      dispatcher,
      body: body ? Readable.from(pieces(body)) : null,
    });
    return {
      status: answer.statusCode,
      type: String(answer.headers['content-type'] ?? ''),
      content: Buffer.from(await answer.body.arrayBuffer()),
    };
  },
  axios: async ({ method, body, headers }) => {
    const answer = await axios.request<ArrayBuffer>({
      url,
      method,
      headers,
      data: body,
      responseType: 'arraybuffer',
      maxRedirects: 0,
      maxBodyLength: Infinity,
      validateStatus: () => true,
    });
    return {
      status: answer.status,
      type: String(answer.headers['content-type'] ?? ''),
      content: Buffer.from(answer.data),
    };
  },
};

async function main(): Promise<object> {
  const ask = libraries[library];
  if (!ask) throw new Error(`there is no library ${library}`);
  const body = { post: Buffer.from('{"n":1}'), upload }[action];
  const headers: Record<string, string> = body ? { 'Content-Type': 'application/json' } : {};
  const { status, type, content } = await ask({ method: body ? 'POST' : 'GET', body, headers });
  return {
    status,
    type,
    length: content.length,
    sha256: createHash('sha256').update(content).digest('hex'),
    text: content.length <= 65_536 ? content.toString() : '',
  };
}

try {
  console.log(JSON.stringify(await main()));
} catch (error) {
  const { message, cause } = error as Error;
  console.log(
    JSON.stringify({ status: 0, error: `${message} ${(cause as Error | undefined)?.message ?? ''}` }),
  );
}
