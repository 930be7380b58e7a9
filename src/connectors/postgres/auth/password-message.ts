const PASSWORD = 0x70; // 'p', whatever the answer is to: PasswordMessage, SASLInitialResponse, SASLResponse

/** PasswordMessage: a password in clear or an MD5 answer, with its final NUL. The caller wipes it once it is written. */
export function passwordMessage(password: Buffer): Buffer {
  return framed(Buffer.concat([password, Buffer.alloc(1)]));
}

/** SASLInitialResponse: the mechanism that the client chose, and its first message. */
export function saslInitialResponse(mechanism: string, response: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeInt32BE(response.length);
  return framed(Buffer.concat([Buffer.from(`${mechanism}\0`), length, response]));
}

/** SASLResponse: any later message of the client, as it is. */
export function saslResponse(response: Buffer): Buffer {
  return framed(Buffer.from(response));
}

/** Type, length, body; the length counts itself and the body. Wipes `body`, of which it makes a copy. */
function framed(body: Buffer): Buffer {
  // Not `Buffer.alloc`: up to 64 bytes it lives on the JavaScript heap until native code asks for it, and then V8 moves it
  // and leaves the old bytes behind, where no `fill` reaches them. (test/connectors/postgres/auth/memory.test.ts)
  const message = Buffer.allocUnsafe(5 + body.length);
  message.writeUInt8(PASSWORD);
  message.writeInt32BE(4 + body.length, 1);
  body.copy(message, 5);
  body.fill(0);
  return message;
}
