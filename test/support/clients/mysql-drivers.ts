import { join } from 'node:path';
import type { MySqlKind } from '../servers/mysql-accounts.ts';
import { cliDrivers } from './mysql-cli.ts';
import type { MySqlAction, MySqlAnswers, MySqlDriver } from './mysql-driver.ts';
import { npmDrivers } from './mysql-npm.ts';
import { buildable, buildGo, compileJava, fetchJar, installPython, type Recipe } from './program.ts';

interface MySqlRecipe extends Recipe {
  readonly plugins: readonly string[];
  readonly lacks: (action: MySqlAction, kind: MySqlKind) => boolean;
}

const everything: readonly MySqlAction[] = [
  'select',
  'change-user',
  'reset',
  'kill-query',
  'multi-statements',
  'big',
  'load-local',
  'error',
  'logins',
];

function jdbc(
  name: string,
  driver: 'mysql' | 'mariadb',
  artifact: string,
  plugins: readonly string[],
): MySqlRecipe {
  const [, module, version = ''] = artifact.split(':');
  return {
    name,
    folder: 'jdbc-mysql',
    version: artifact,
    files: ['Client.java'],
    plugins,
    // MariaDB's has no method for the one, and sends the other to MariaDB only.
    lacks: (action, kind) =>
      driver === 'mariadb' && (action === 'change-user' || (action === 'reset' && kind === 'mysql9')),
    build: async (source, folder) => {
      await fetchJar(artifact, folder);
      await compileJava(join(source, 'Client.java'), folder);
    },
    command: (_, folder) => {
      const classPath = `${folder}:${join(folder, `${module}-${version}.jar`)}`;
      const quick = ['-XX:TieredStopAtLevel=1', '-Xshare:auto', '-Xmx1g'];
      return ['java', ...quick, `-Ddriver=${driver}`, '-cp', classPath, 'Client'];
    },
  };
}

const usual = ['mysql_native_password', 'caching_sha2_password', 'sha256_password', 'mysql_clear_password'];

const recipes: readonly MySqlRecipe[] = [
  {
    name: 'pymysql',
    files: ['requirements.txt'],
    plugins: [...usual, 'client_ed25519'],
    lacks: (action) => action === 'change-user' || action === 'reset',
    build: installPython,
    command: (source, folder) => ['env', `PYTHONPATH=${folder}`, 'python3', join(source, 'client.py')],
  },
  {
    name: 'go-mysql',
    files: ['go.mod', 'go.sum', 'main.go'],
    plugins: [...usual, 'client_ed25519'],
    lacks: (action) => action === 'change-user' || action === 'reset',
    build: (source, folder) => buildGo(source, join(folder, 'go-mysql')),
    command: (_, folder) => [join(folder, 'go-mysql')],
  },
  jdbc('connectorj', 'mysql', 'com.mysql:mysql-connector-j:9.4.0', usual),
  jdbc('mariadb-connectorj', 'mariadb', 'org.mariadb.jdbc:mariadb-java-client:3.5.6', [
    ...usual,
    'client_ed25519',
    'parsec',
  ]),
];

function program(recipe: MySqlRecipe): MySqlDriver {
  const { prepare, ask } = buildable(recipe);
  return {
    name: recipe.name,
    plugins: recipe.plugins,
    actions: (kind) => everything.filter((action) => !recipe.lacks(action, kind)),
    prepare,
    ask: async (action, target) => {
      const {
        host,
        port,
        ports = [port],
        user,
        database,
        sslmode = 'disable',
        password,
        rootCert,
        localFile,
      } = target;
      const answer = await ask([action, host, ports.join(','), user, database, sslmode], {
        ...(password === undefined ? {} : { MYSQL_PWD: password }),
        ...(rootCert === undefined ? {} : { MYSQL_SSL_CA: rootCert }),
        ...(localFile === undefined ? {} : { MYSQL_LOCAL_FILE: localFile }),
      });
      return answer as MySqlAnswers[typeof action];
    },
  };
}

/** Every client of MySQL there is: command line clients, drivers of npm, drivers of other languages. */
export const mysqlDrivers: readonly MySqlDriver[] = [...cliDrivers, ...npmDrivers, ...recipes.map(program)];
