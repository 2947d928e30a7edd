mod publishing;
