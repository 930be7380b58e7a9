import { testClients } from './mysql-clients.ts';

testClients('mariadb10');
